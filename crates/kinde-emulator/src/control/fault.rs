//! Makes a fault of a control request. Checks what the constructors of `Fault` panic on.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::requests::{FaultKind, InjectFault};
use crate::fault::Fault;

pub(super) fn read(request: InjectFault) -> Result<Fault, &'static str> {
    let mut fault = match request.fault {
        FaultKind::None => Fault::latency(Duration::ZERO),
        FaultKind::Status(status) => Fault::status(checked(status)?),
        FaultKind::RouteNotFound => Fault::route_not_found(),
        FaultKind::Reply {
            status,
            content_type,
            body,
        } => Fault::reply(checked(status)?, value(&content_type)?, body),
        FaultKind::Redirect(location) => Fault::redirect(value(&location)?),
        FaultKind::RejectToken => Fault::reject_token(),
        FaultKind::WithMember { name, value } => Fault::with_member(name, &value.to_string()),
        FaultKind::WithoutMember(name) => Fault::without_member(name),
        FaultKind::Truncate => Fault::truncate(),
        FaultKind::ResetMidBody => Fault::reset_mid_body(),
        FaultKind::TrickleMs(interval) => Fault::trickle(Duration::from_millis(interval)),
        FaultKind::Hold => Fault::hold(),
        FaultKind::NoResponse => Fault::no_response(),
        FaultKind::Close => Fault::close(),
        FaultKind::Reset => Fault::reset(),
        FaultKind::LoseReply => Fault::lose_reply(),
        FaultKind::Late => Fault::late(),
    };
    for (name, text) in &request.headers {
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err("the name of a header is invalid");
        }
        fault = fault.with_header(name, value(text)?);
    }
    if let Some(every) = request.every {
        if every == 0 {
            return Err("every must not be 0");
        }
        fault = fault.every(every);
    }
    if let Some(times) = request.times {
        fault = fault.times(times);
    }
    Ok(fault.after(Duration::from_millis(request.after_ms)))
}

fn checked(status: u16) -> Result<u16, &'static str> {
    if (200..600).contains(&status) {
        Ok(status)
    } else {
        Err("the status must be 200 to 599")
    }
}

fn value(text: &str) -> Result<&str, &'static str> {
    match HeaderValue::from_str(text) {
        Ok(_) => Ok(text),
        Err(_) => Err("the value of a header is invalid"),
    }
}
