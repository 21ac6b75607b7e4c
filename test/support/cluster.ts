import { once } from "node:events";
import { createServer } from "node:net";
import { vi } from "vitest";
import { type NatsServer, startNatsServer } from "../../src/testing/nats-server.ts";
import { observe } from "./system.ts";

/** One server of a cluster. */
export interface Node extends NatsServer {
  /** As the leaders of streams and consumers are named. */
  readonly name: string;
}

/** Three nats-servers on loopback that keep their streams together. */
export interface Cluster extends AsyncDisposable {
  readonly nodes: readonly Node[];
  /** Starts what is down, waits until streams with three replicas can be made, and deletes all that are there. */
  renew(): Promise<void>;
}

export async function startCluster(): Promise<Cluster> {
  const ports = await freePorts(3);
  const routes = ports.map((port) => `nats://127.0.0.1:${port}`).join();
  const starting = ports.map(async (port, index): Promise<Node> => {
    const name = `node_${index + 1}`;
    const config = `server_name: ${name}\ncluster { name: sortie, listen: "127.0.0.1:${port}", routes: [${routes}] }`;
    return Object.assign(await startNatsServer({ config }), { name });
  });
  const nodes = await Promise.all(starting);

  async function isWhole(): Promise<void> {
    await using look = await observe(nodes[0]!);
    await look.jsm.streams.add({ name: "WHOLE", subjects: ["whole"], num_replicas: nodes.length });
    for await (const { config } of look.jsm.streams.list()) await look.jsm.streams.delete(config.name);
  }

  const cluster: Cluster = {
    nodes,
    async renew() {
      await Promise.all(nodes.filter((node) => !isUp(node)).map((node) => node.start()));
      await vi.waitFor(isWhole, { timeout: 30_000, interval: 100 });
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(nodes.map((node) => node.stop()));
    },
  };
  await cluster.renew();
  return cluster;
}

function isUp({ pid }: Node): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

/** Below those that the system gives to whoever connects, so that nobody takes one of a node that is down. */
async function freePorts(count: number): Promise<number[]> {
  const ports = new Set<number>();
  while (ports.size < count) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    const server = createServer().listen(port, "127.0.0.1");
    const isFree = await once(server, "listening").then(
      () => true,
      () => false,
    );
    if (!isFree) continue;
    ports.add(port);
    server.close();
    await once(server, "close");
  }
  return [...ports];
}
