// better-auth with keys of organizations, in a database in memory. It has no endpoint for services that verify keys
// (`verifyApiKey` is for the server itself), so this is the one of the example. `node better_auth.js` prints its port.
import { timingSafeEqual } from 'node:crypto';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { DatabaseSync } from 'node:sqlite';

const require = createRequire(`${process.cwd()}/`);
const { betterAuth } = require('better-auth');
const { organization } = require('better-auth/plugins');
const { getMigrations } = require('better-auth/db/migration');
const { apiKey } = require('@better-auth/api-key');

const TOKEN = 'Bearer token-of-the-service';

let database = new DatabaseSync(':memory:');
const auth = betterAuth({
  database,
  secret: 'a secret of at least thirty-two characters',
  baseURL: 'http://127.0.0.1',
  telemetry: { enabled: false },
  emailAndPassword: { enabled: true },
  plugins: [
    organization(),
    apiKey([
      { configId: 'organizations', references: 'organization', rateLimit: { enabled: false } },
      { configId: 'users', references: 'user', rateLimit: { enabled: false } },
    ]),
  ],
});
await (await getMigrations(auth.options)).runMigrations();
const { user } = await auth.api.signUpEmail({
  body: { name: 'Owner', email: 'owner@acme.example', password: 'a long password' },
});
const organizations = new Map();

async function organizationOf(slug) {
  if (!organizations.has(slug)) {
    const { id } = await auth.api.createOrganization({ body: { name: slug, slug, userId: user.id } });
    organizations.set(slug, id);
  }
  return organizations.get(slug);
}

const routes = {
  // The endpoint that a service calls.
  '/verify': async ({ key }) => {
    // Without `configId`, the key of a user is valid too, and its `referenceId` is the user's.
    const body = { configId: 'organizations', key };
    const { valid, error, key: found } = await auth.api.verifyApiKey({ body });
    const expiresAt = found?.expiresAt ? new Date(found.expiresAt).getTime() : null;
    return { valid, code: error?.code, key: found && { ...found, expiresAt } };
  },
  // What the test does.
  '/issue': async ({ organization, ...rest }) => {
    const organizationId = await organizationOf(organization);
    const permissions = { reports: ['read'] };
    const body = { configId: 'organizations', organizationId, userId: user.id, permissions, ...rest };
    const { id, key, expiresAt } = await auth.api.createApiKey({ body });
    return { id, key, organizationId, expiresAt: expiresAt && new Date(expiresAt).getTime() };
  },
  '/disable': async ({ id }) =>
    auth.api.updateApiKey({
      body: { configId: 'organizations', keyId: id, userId: user.id, enabled: false },
    }),
  '/outage': async () => database.close() ?? {},
};

const server = createServer(async (request, response) => {
  const answer = (status, body) => {
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  };
  const given = Buffer.from(request.headers.authorization ?? '');
  if (given.length !== TOKEN.length || !timingSafeEqual(given, Buffer.from(TOKEN))) {
    return answer(401, {});
  }
  let text = '';
  for await (const chunk of request) text += chunk;
  try {
    answer(200, await routes[request.url](JSON.parse(text)));
  } catch (error) {
    answer(500, { error: String(error) });
  }
});
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ port: server.address().port })));
