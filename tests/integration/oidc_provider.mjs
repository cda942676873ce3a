// A certified OpenID provider (npm oidc-provider) with three clients, which turns its keys at POST /rotate.
// Tokens of the client "bound" are bound to the certificate in the field x-certificate, PEM in base64 (RFC 8705).
// Started by test_auth.py; says "listening on http://127.0.0.1:PORT" when it is.
import { generateKeyPairSync, X509Certificate } from 'node:crypto'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [folder] = process.argv.slice(2)
const found = createRequire(`${folder}/package.json`).resolve('oidc-provider')
const { Provider } = await import(pathToFileURL(found).href)

let turns = 0
function keys() {
  turns += 1
  const pairs = [
    ['rsa', { modulusLength: 2048 }, 'RS256'],
    ['ec', { namedCurve: 'P-256' }, 'ES256'],
    ['ed25519', {}, 'EdDSA'],
  ]
  return pairs.map(([kind, options, alg]) => ({
    ...generateKeyPairSync(kind, options).privateKey.export({ format: 'jwk' }),
    kid: `${alg}-${turns}`, use: 'sig', alg,
  }))
}

const client = (client_id, more) => ({
  client_id, client_secret: `${client_id}-secret`, grant_types: ['client_credentials'], redirect_uris: [],
  response_types: [], introspection_signed_response_alg: 'RS256', ...more,
})

function make(issuer) {
  const provider = new Provider(issuer, {
    clients: [client('app'), client('gw'), client('bound', { tls_client_certificate_bound_access_tokens: true })],
    jwks: { keys: keys() },
    scopes: ['api.read', 'api.write'],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true },
      jwtIntrospection: { enabled: true },
      mTLS: {
        enabled: true,
        certificateBoundAccessTokens: true,
        getCertificate: (ctx) => new X509Certificate(Buffer.from(ctx.get('x-certificate'), 'base64')),
      },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, resource) => ({
          scope: 'api.read api.write', audience: resource, accessTokenTTL: 300,
          accessTokenFormat: resource.startsWith('urn:jwt:') ? 'jwt' : 'opaque',
          jwt: { sign: { alg: resource.split(':')[2] || 'RS256' } },
        }),
      },
    },
  })
  return provider.callback()
}

let handle
const server = createServer((request, response) => {
  if (request.url === '/rotate') {
    handle = make(issuer)
    response.end()
  } else {
    handle(request, response)
  }
})
let issuer
server.listen(0, '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`
  handle = make(issuer)
  console.log(`listening on ${issuer}`)
})
process.on('SIGTERM', () => process.exit(0))
