import { type Connection, connect } from "../../src/nats/connection.ts";
import type { NatsServer } from "../../src/testing/nats-server.ts";

/** A server's configuration in which the function's login lacks permissions; everyone else may do all. */
export function functionDenied(operation: "publish" | "subscribe", ...subjects: string[]): string {
  return `no_auth_user: admin
    authorization { users: [
      { user: admin, password: admin }
      { user: function, password: secret, permissions: { ${operation}: { deny: ${JSON.stringify(subjects)} } } }
    ] }`;
}

/** Connects with that login. */
export function asFunction({ url }: Pick<NatsServer, "url">): (ms: number) => Promise<Connection> {
  return (ms) => connect({ url: url.replace("//", "//function:secret@") }, ms);
}
