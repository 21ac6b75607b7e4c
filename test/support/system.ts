import { type JetStreamClient, type JetStreamManager, jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/nats-core";
import { connect as connectTcp } from "@nats-io/transport-node";
import type { App } from "../../src/app.ts";
import { type InvocationOptions, invoke } from "../../src/consume/invocation.ts";
import type { InvocationEvent, InvocationReport } from "../../src/consume/report.ts";
import { type Connection, connect, disconnect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import { type NatsServer, type NatsServerOptions, startNatsServer } from "../../src/testing/nats-server.ts";

/** A nats-server of one's own with an app applied to it, and a client that is not Sortie's to look at it. */
export interface System extends AsyncDisposable {
  readonly server: NatsServer;
  readonly tcp: NatsConnection;
  readonly js: JetStreamClient;
  readonly jsm: JetStreamManager;
  /** What the invocations told, in order. */
  readonly events: InvocationEvent[];
  connect(): Promise<Connection>;
  /** One invocation over all consumers, ten seconds long at most unless told otherwise. */
  invoke(options?: Partial<InvocationOptions> & { budgetMs?: number }): Promise<InvocationReport>;
  /** Invokes until the server has nothing left to deliver and nothing outstanding: retries have come and gone. */
  settle(): Promise<void>;
  publish(subject: string, payload: unknown, msgID?: string): Promise<number>;
}

export async function startSystem(
  app: Pick<App, "streams" | "bindings">,
  options?: NatsServerOptions,
): Promise<System> {
  const server = await startNatsServer(options);
  const sortie = await connect({ url: server.url }, 5_000);
  await apply(sortie, { streams: app.streams, consumers: app.bindings.map(({ consumer }) => consumer) });
  disconnect(sortie);
  // last, for the client's transport is global to the process: a reconnection would take the latest one
  const tcp = await connectTcp({ servers: server.tcpUrl.replace("nats://", ""), reconnect: false });
  const js = jetstream(tcp);
  const events: InvocationEvent[] = [];
  const system: System = {
    server,
    tcp,
    js,
    jsm: await jetstreamManager(tcp),
    events,
    connect: () => connect({ url: server.url }, 5_000),
    invoke: ({ budgetMs = 10_000, ...more } = {}) =>
      invoke({
        streams: app.streams,
        bindings: app.bindings,
        connect: (ms) => connect({ url: server.url }, ms),
        deadline: Date.now() + budgetMs,
        log: (event) => events.push(event),
        ...more,
      }),
    async settle() {
      const outstanding = async () => {
        const infos = await Promise.all(
          app.bindings.map(({ consumer }) => system.jsm.consumers.info(consumer.stream.name, consumer.name)),
        );
        return infos.some(({ num_pending, num_ack_pending }) => num_pending + num_ack_pending > 0);
      };
      // the server's counts come a little after its PubAcks: one quiet round proves nothing
      for (let quiet = 0; quiet < 3; ) {
        const { consumers } = await system.invoke();
        const idle = consumers.every(({ pulled }) => pulled === 0) && !(await outstanding());
        quiet = idle ? quiet + 1 : 0;
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    },
    async publish(subject, payload, msgID) {
      const data = payload instanceof Uint8Array ? payload : JSON.stringify(payload);
      return (await js.publish(subject, data, msgID ? { msgID } : {})).seq;
    },
    async [Symbol.asyncDispose]() {
      await tcp.close();
      await server.stop();
    },
  };
  return system;
}
