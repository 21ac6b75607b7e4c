import { nkeys } from "@nats-io/nats-core";

/** A user of an account, and what it may do. */
interface User {
  readonly name: string;
  readonly publish: readonly string[];
  readonly subscribe: readonly string[];
}

/** A server's configuration in which users log in by JWTs of an operator, as nsc makes them, and their `.creds` files. */
export function operated(users: readonly User[]): { config: string; credsOf(name: string): string } {
  const [operator, system, account] = [nkeys.createOperator(), nkeys.createAccount(), nkeys.createAccount()];
  const limits = { subs: -1, data: -1, payload: -1, imports: -1, exports: -1, wildcards: true, conn: -1, leaf: -1 };
  const storage = { mem_storage: -1, disk_storage: -1, streams: -1, consumer: -1 };
  const accounts = [
    [system, jwt(operator, system, "SYS", { type: "account", limits })],
    [account, jwt(operator, account, "APP", { type: "account", limits: { ...limits, ...storage } })],
  ] as const;
  const creds = new Map(
    users.map(({ name, publish, subscribe }) => {
      const user = nkeys.createUser();
      const permissions = { pub: { allow: publish }, sub: { allow: subscribe }, subs: -1, data: -1, payload: -1 };
      const token = jwt(account, user, name, { type: "user", ...permissions });
      const seed = new TextDecoder().decode(user.getSeed());
      return [
        name,
        `-----BEGIN NATS USER JWT-----\n${token}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n${seed}\n------END USER NKEY SEED------\n`,
      ];
    }),
  );
  return {
    config: [
      `operator: ${jwt(operator, operator, "OP", { type: "operator" })}`,
      `system_account: ${system.getPublicKey()}`,
      "resolver: MEMORY",
      `resolver_preload: { ${accounts.map(([key, token]) => `${key.getPublicKey()}: ${token}`).join("\n")} }`,
    ].join("\n"),
    credsOf: (name) => creds.get(name) ?? "",
  };
}

function jwt(issuer: nkeys.KeyPair, subject: nkeys.KeyPair, name: string, nats: object): string {
  const now = Math.floor(Date.now() / 1_000);
  const claims = { jti: name, iat: now, iss: issuer.getPublicKey(), sub: subject.getPublicKey(), name };
  const parts = [
    { typ: "JWT", alg: "ed25519-nkey" },
    { ...claims, nats: { ...nats, version: 2 } },
  ].map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"));
  const signature = issuer.sign(new TextEncoder().encode(parts.join(".")));
  return `${parts.join(".")}.${Buffer.from(signature).toString("base64url")}`;
}
