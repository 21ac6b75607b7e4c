import { type JetStreamClient, type JetStreamManager, jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/nats-core";
import { connect as connectTcp } from "@nats-io/transport-node";
import type { App } from "../../src/app.ts";
import { type InvocationOptions, invoke } from "../../src/consume/invocation.ts";
import type { InvocationEvent, InvocationReport } from "../../src/consume/report.ts";
import { type Connection, disconnect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import { type NatsServer, type NatsServerOptions, startNatsServer } from "../../src/testing/nats-server.ts";
import { type ClientName, clients } from "./clients.ts";

/** A client that is not Sortie's, to look at a server. */
export interface Observer extends AsyncDisposable {
  readonly tcp: NatsConnection;
  readonly js: JetStreamClient;
  readonly jsm: JetStreamManager;
}

/** It does not reconnect: the client's transport is global to the process, and it would take the latest one. */
export async function observe({ tcpUrl }: Pick<NatsServer, "tcpUrl">): Promise<Observer> {
  const tcp = await connectTcp({ servers: tcpUrl.replace("nats://", ""), reconnect: false });
  return {
    tcp,
    js: jetstream(tcp),
    jsm: await jetstreamManager(tcp, { checkAPI: false }),
    [Symbol.asyncDispose]: () => tcp.close(),
  };
}

/** A nats-server of one's own with an app applied to it, and a client that is not Sortie's to look at it. */
export interface System extends Observer {
  readonly server: NatsServer;
  /** What the invocations told, in order. */
  readonly events: InvocationEvent[];
  connect(): Promise<Connection>;
  /** One invocation over all consumers, ten seconds long at most unless told otherwise. */
  invoke(options?: Partial<InvocationOptions> & { budgetMs?: number }): Promise<InvocationReport>;
  /** Invokes until the server has nothing left to deliver and nothing outstanding: retries have come and gone. */
  settle(): Promise<void>;
  publish(subject: string, payload: unknown, msgID?: string): Promise<number>;
}

export interface SystemOptions extends NatsServerOptions {
  /** What Sortie connects with. @default "wsconnect", as in its adapters */
  client?: ClientName;
}

export async function startSystem(
  app: Pick<App, "streams" | "bindings" | "fanOut"> & Partial<Pick<App, "name" | "schedules">>,
  { client = "wsconnect", ...options }: SystemOptions = {},
): Promise<System> {
  const server = await startNatsServer(options);
  const connect = (ms: number): Promise<Connection> => clients[client](server, ms);
  const sortie = await connect(5_000);
  const { streams, bindings, fanOut, name: owner, schedules = [] } = app;
  const consumers = bindings.map(({ consumer }) => consumer);
  await apply(sortie, { streams, consumers, fanOut, schedules: owner ? [{ owner, schedules }] : [] });
  disconnect(sortie);
  const observer = await observe(server);
  const events: InvocationEvent[] = [];
  const system: System = {
    ...observer,
    server,
    events,
    connect: () => connect(5_000),
    invoke: ({ budgetMs = 10_000, ...more } = {}) =>
      invoke({
        streams: app.streams,
        bindings: app.bindings,
        fanOut: app.fanOut,
        connect,
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
      return (await observer.js.publish(subject, data, msgID ? { msgID } : {})).seq;
    },
    async [Symbol.asyncDispose]() {
      await observer[Symbol.asyncDispose]();
      await server.stop();
    },
  };
  return system;
}
