"""Calls the service with grpcio, and prints one JSON line per call.

Arguments: the address of the server, the path of a method, and the key ("" for none).
"""

import json
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

address, path, key = sys.argv[1:]
metadata = [("authorization", f"Bearer {key}")] if key else []
with grpc.insecure_channel(address) as channel:
    call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    try:
        reply = call(b"", metadata=metadata, timeout=20)
        print(json.dumps({"code": 0, "length": len(reply)}))
    except grpc.RpcError as error:
        details = {}
        status = rpc_status.from_call(error)
        for any_detail in status.details if status else []:
            if any_detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo()
                any_detail.Unpack(info)
                details = {"reason": info.reason, "domain": info.domain, **info.metadata}
        print(json.dumps({"code": error.code().value[0], "message": error.details(), **details}))
