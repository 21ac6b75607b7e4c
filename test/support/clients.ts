import { connect as connectTcp } from "@nats-io/transport-node";
import { connect as connectLegacy } from "nats.ws";
import { type Connection, connect } from "../../src/nats/connection.ts";
import type { NatsServer } from "../../src/testing/nats-server.ts";

/** Connects to a server, within `ms`. */
export type Client = (server: Pick<NatsServer, "url" | "tcpUrl">, ms: number) => Promise<Connection>;

/** The core asks for a slice of a connection: each client that has it must do. */
export const clients = {
  wsconnect: async ({ url }, ms) => connect({ url }, ms),
  "nats.ws": async ({ url }, timeout) => (await connectLegacy({ servers: url, timeout })) as unknown as Connection,
  "transport-node": async ({ tcpUrl }, timeout) =>
    connectTcp({ servers: tcpUrl.replace("nats://", ""), timeout, reconnect: false }),
} satisfies Record<string, Client>;

export type ClientName = keyof typeof clients;
