import { nkeys } from "@nats-io/nats-core";

type KeyPair = ReturnType<typeof nkeys.createUser>;

/** What a user's JWT says beside who it is. */
interface UserClaims {
  /** Epoch seconds. */
  exp?: number;
  allowed_connection_types?: string[];
  /** Who signs it. @default the account */
  by?: KeyPair;
}

/** An operator with one account that has JetStream, as a nats-server is configured with, and creds of users. */
export interface Operator {
  readonly config: string;
  creds(claims?: UserClaims): string;
}

export function makeOperator(limits: object = {}): Operator {
  const [operator, system, account] = [nkeys.createOperator(), nkeys.createAccount(), nkeys.createAccount()];
  const operatorJwt = jwt(operator, operator, { nats: { type: "operator", version: 2 } });
  const all = { subs: -1, data: -1, payload: -1, imports: -1, exports: -1, wildcards: true, conn: -1, leaf: -1 };
  const preloaded = [
    { pair: system, limits: all },
    { pair: account, limits: { ...all, mem_storage: -1, disk_storage: -1, ...limits } },
  ].map(({ pair, limits }) => {
    const claims = { nats: { type: "account", version: 2, limits } };
    return `${pair.getPublicKey()}: ${jwt(operator, pair, claims)}`;
  });
  return {
    config: `operator: ${operatorJwt}
      system_account: ${system.getPublicKey()}
      resolver: MEMORY
      resolver_preload: { ${preloaded.join(", ")} }`,
    creds({ exp, allowed_connection_types, by = account } = {}) {
      const user = nkeys.createUser();
      const nats = { type: "user", version: 2, subs: -1, data: -1, payload: -1, allowed_connection_types };
      return credsFile(jwt(by, user, { name: "function", exp, nats }), text(user.getSeed()));
    },
  };
}

export function credsFile(jwt: string, seed: string): string {
  return `-----BEGIN NATS USER JWT-----\n${jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n${seed}\n------END USER NKEY SEED------\n`;
}

function jwt(issuer: KeyPair, subject: KeyPair, claims: object): string {
  const header = base64url(JSON.stringify({ typ: "JWT", alg: "ed25519-nkey" }));
  const body = { jti: crypto.randomUUID(), iat: 1, iss: issuer.getPublicKey(), sub: subject.getPublicKey(), ...claims };
  const signed = `${header}.${base64url(JSON.stringify(body))}`;
  return `${signed}.${base64url(issuer.sign(new TextEncoder().encode(signed)))}`;
}

const base64url = (data: string | Uint8Array) => Buffer.from(data).toString("base64url");
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
