// An authorization server: oidc-provider, with opaque tokens by client credentials. `node oidc.js CLIENT…` prints its port and a
// refresh token. The access tokens of a client have it as their claim `org_id`.
import { createServer } from 'node:http';
import { createRequire } from 'node:module';

const { Provider } = createRequire(`${process.cwd()}/`)('oidc-provider');

const AUDIENCE = 'https://api.acme.example';
const secret = 's:3 cret';
const clients = process.argv.slice(2).map((client_id) => ({
  client_id,
  client_secret: secret,
  grant_types: ['client_credentials', 'refresh_token', 'authorization_code'],
  redirect_uris: ['http://localhost/'],
  response_types: ['code'],
  application_type: 'native',
}));

const server = createServer();
server.listen(0, '127.0.0.1', async () => {
  const { port } = server.address();
  const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients,
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      introspection: { enabled: true, allowedPolicy: () => true },
      revocation: { enabled: true, allowedPolicy: () => true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => AUDIENCE,
        getResourceServerInfo: (ctx, audience) => ({
          audience,
          scope: 'read:reports write:reports',
          accessTokenFormat: 'opaque',
          accessTokenTTL: 3600,
        }),
      },
    },
    // The last one enables refresh tokens.
    scopes: ['read:reports', 'write:reports', 'openid', 'offline_access'],
    extraTokenClaims: (ctx, token) => ({ org_id: token.clientId }),
  });
  server.on('request', provider.callback());
  const client = await provider.Client.find(clients[0].client_id);
  const grant = new provider.Grant({ clientId: client.clientId, accountId: 'user' });
  const grantId = await grant.save();
  const refresh = new provider.RefreshToken({ client, accountId: 'user', grantId, scope: 'openid' });
  console.log(JSON.stringify({ port, refresh_token: await refresh.save() }));
});
