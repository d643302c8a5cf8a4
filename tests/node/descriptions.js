// Compares messages with what vendors publish: WorkOS its OpenAPI description, Unkey the client that it generates from its own.
// `node descriptions.js MESSAGES` prints the messages that differ, and how. MESSAGES has, by vendor, the `request` that a verifier
// sent, and the `replies` of a stub, each a status and a body.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const require = createRequire(`${process.cwd()}/`);
const { Ajv2020 } = require('ajv/dist/2020');
const { parse } = require('yaml');
const { Unkey, HTTPClient } = require('@unkey/api');
const { Code } = require('@unkey/api/models/components');

const differences = [];
const check = async (what, message, assertion) => {
  try {
    await assertion();
  } catch (error) {
    differences.push([what, `${error.message}: ${JSON.stringify(message)}`]);
  }
};

async function workos({ request, replies }) {
  const description = parse(readFileSync(require.resolve('@workos/openapi-spec/spec'), 'utf8'));
  const ajv = new Ajv2020({ strict: false, formats: { 'date-time': (text) => !Number.isNaN(Date.parse(text)) } });
  ajv.addSchema(description, 'workos');
  const { pathname, origin } = new URL(request.url);
  const operation = `workos#/paths/${pathname.replaceAll('/', '~1')}/${request.method.toLowerCase()}`;
  const json = 'content/application~1json/schema';
  const matches = (schema, value) => {
    const validate = ajv.getSchema(`${operation}/${schema}`);
    assert(validate, `no ${schema}`);
    assert(validate(value), ajv.errorsText(validate.errors));
  };
  await check('WorkOS, request', request, () => {
    assert(description.servers.some(({ url }) => new URL(url).origin === origin), `no server ${origin}`);
    assert.equal(request.target, pathname);
    matches(`requestBody/${json}`, request.body);
  });
  for (const [status, body] of replies) {
    await check(`WorkOS, ${status}`, body, () => matches(`responses/${status}/${json}`, body));
  }
}

async function unkey({ request, replies }) {
  let sent;
  for (const [status, body] of replies) {
    const fetcher = async (input) => {
      const { url, method, headers } = input;
      const authorization = headers.get('authorization');
      sent = { url, method, authorization, body: await input.json() };
      // The only one that the description has as a problem document.
      const type = status === 429 ? 'application/problem+json' : 'application/json';
      return new Response(JSON.stringify(body), { status, headers: { 'content-type': type } });
    };
    const client = new Unkey({
      rootKey: request.authorization.replace('Bearer ', ''),
      httpClient: new HTTPClient({ fetcher }),
      retryConfig: { strategy: 'none' },
    });
    await check(`Unkey, ${status}`, body, async () => {
      // The client leaves out what its description does not have.
      if (status === 200) {
        assert.deepEqual(await client.keys.verifyKey(request.body), body);
        assert(Object.values(Code).includes(body.data.code), 'no such code');
      } else {
        const error = await client.keys.verifyKey(request.body).catch((thrown) => thrown);
        assert.match(error.name, /ErrorResponse$/, error.message);
        assert.equal(error.statusCode, status);
        assert.deepEqual(error.data$.meta, body.meta);
        assert.deepEqual(error.data$.error, body.error);
      }
    });
  }
  await check('Unkey, request', request, () => {
    const { target, ...ours } = request;
    assert.deepEqual(sent, ours);
    assert.equal(target, new URL(sent.url).pathname);
  });
}

const messages = JSON.parse(process.argv[2]);
await workos(messages.workos);
await unkey(messages.unkey);
console.log(JSON.stringify(differences));
