import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { wsconnect } from "@nats-io/nats-core";
import { defineStream } from "../../src/define/stream.ts";
import { type Connection, connect, disconnect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import { release } from "../../src/schedule/release.ts";
import { scheduled } from "../../src/schedule/schedule.ts";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { programOf, type ServerVersion } from "../../test/support/servers.ts";
import { numberOf, Order, orderAt } from "../order.ts";
import { assertAhead, byThousands, type Delaying, range } from "./queue.ts";

const [name, subject] = ["BENCH_LATER", "bench.later.placed"];

/** How long a function stays for what is due after the last one: many at once take a while. */
const staysMs = ({ length }: readonly unknown[]) => 1_000 + length / 2;

/** A stream whose schedules the server releases, or a function does. */
export function laterBy(engine: "server" | "function") {
  return defineStream(name, {
    subjects: { [subject]: Order },
    schedules: engine === "server" ? true : "function",
  });
}

export function encodedOrder(n: number): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(orderAt(n)));
}

/** Sortie's schedules: how late each was is seen from when the server has stored the message that was released. */
export async function startSortieSchedules(
  engine: "server" | "function",
  version: ServerVersion = "newest",
): Promise<Delaying & { readonly url: string; readonly pid: number }> {
  await using starting = new AsyncDisposableStack();
  const server = starting.use(await startNatsServer({ binary: programOf(version) }));
  const nc = await wsconnect({ servers: server.url });
  starting.defer(() => nc.close());
  const connection = await connect({ url: server.url }, 5_000);
  starting.defer(() => disconnect(connection));
  const stream = laterBy(engine);
  await apply(nc, { streams: [stream], consumers: [] });
  const [js, jsm] = [jetstream(nc), await jetstreamManager(nc)];
  const running = starting.move();
  const releasedBy = engine === "server" ? "the server" : "a function";

  /** One that nobody gave an id, as from most handlers. */
  async function store(caller: Connection, n: number, at: Date): Promise<void> {
    const options = { id: `order ${n} of ${at.getTime()}`, nameless: true, at };
    const outgoing = { stream: name, subject, payload: encodedOrder(n) };
    await scheduled(caller, outgoing, stream, options, Date.now()).store(30_000);
  }

  async function countReleased(): Promise<number> {
    const { state } = await jsm.streams.info(name, { subjects_filter: subject });
    return state.subjects?.[subject] ?? 0;
  }

  /** Until all are released; a function that stays, and the next one where that was not enough. */
  async function releaseAll(due: readonly number[]): Promise<void> {
    const [last, stays] = [Math.max(...due), staysMs(due)];
    const giveUpAt = last + 60_000;
    for (let leaveAt = last + stays; (await countReleased()) < due.length; leaveAt = Date.now() + stays) {
      if (Date.now() > giveUpAt) throw new Error(`${releasedBy} has not released all of ${due.length} schedules`);
      if (engine === "server") await new Promise((resolve) => setTimeout(resolve, 100));
      else await release(connection, [stream], { deadline: leaveAt + 1_000, lingerMs: leaveAt - Date.now() });
    }
  }

  return {
    url: server.url,
    pid: server.pid,
    name: `Sortie, ${releasedBy}${version === "newest" ? "" : `, nats-server ${version}`}`,
    server: `nats-server ${nc.info?.version}, file storage`,
    later: {
      settings: engine === "server" ? "nothing runs but the server" : "one release() that stays, in this process",
      async lateness(due) {
        await jsm.streams.purge(name);
        const releasing = releaseAll(due);
        const caller = await connect({ url: server.url }, 5_000);
        await byThousands(due.length, (from, to) =>
          Promise.all(range(from, to, (n) => store(caller, n, new Date(due[n] ?? 0)))),
        );
        disconnect(caller);
        assertAhead(due);
        await releasing;
        const late: number[] = [];
        const consumer = await js.consumers.get(name, { filter_subjects: subject });
        for await (const message of await consumer.fetch({ max_messages: due.length, expires: 10_000 }))
          late.push(message.info.timestampNanos / 1e6 - (due[numberOf(message.json())] ?? 0));
        if (late.length !== due.length) throw new Error(`${late.length} schedules of ${due.length} were released`);
        return late;
      },
    },
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}
