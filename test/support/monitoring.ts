import { once } from "node:events";
import { createServer } from "node:net";

/** A connection as a server's monitoring tells of it. */
interface Seen {
  readonly cid: number;
  readonly name?: string;
  /** How many subscriptions it has. */
  readonly subscriptions: number;
}

/** The monitoring of a nats-server that is given `config`. */
export interface Monitoring {
  readonly config: string;
  /** The connections of Sortie's, open ones or all that the server remembers, by their name ("sortie", or as it begins). */
  connections(state?: "open" | "all", name?: string): Promise<Seen[]>;
  /** How many subscriptions the open connections of a name have. */
  subscriptions(name: string): Promise<number>;
}

export async function monitoring(): Promise<Monitoring> {
  const listen = `127.0.0.1:${await freePort()}`;
  const monitor: Monitoring = {
    config: `http: ${listen}`,
    async connections(state = "open", name = "sortie") {
      const response = await fetch(`http://${listen}/connz?state=${state}&limit=4096`);
      const { connections } = (await response.json()) as { connections: Seen[] };
      return connections.filter((one) => one.name === name);
    },
    async subscriptions(name) {
      const open = await monitor.connections("open", name);
      return open.reduce((sum, { subscriptions }) => sum + subscriptions, 0);
    },
  };
  return monitor;
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}
