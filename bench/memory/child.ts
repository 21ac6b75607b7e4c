// One contender with a process to itself: settles what waits, and prints how much memory that took at most.
import { jetstream } from "@nats-io/jetstream";
import { wsconnect } from "@nats-io/nats-core";
import { connect, disconnect } from "../../src/nats/connection.ts";
import { invokeOn, keeping } from "../sortie.ts";
import { app, handle } from "./app.ts";

/** The most above what there was before, in bytes. */
export interface Peak {
  readonly resident: number;
  /** On the heap and in array buffers; what nobody holds any more only counts where nothing collects it. */
  readonly held: number;
  /** How many messages were handled: a client that is too slow is cut off. */
  readonly handled: number;
}

const [url = "", how = "", count = "", collecting = ""] = process.argv.slice(2);
const settle = how === "sortie" ? await readySortie() : await readyBare();
globalThis.gc?.();
const before = process.memoryUsage();
let held = 0;
const sampler = setInterval(() => {
  if (collecting) globalThis.gc?.();
  const { heapUsed, external } = process.memoryUsage();
  held = Math.max(held, heapUsed - before.heapUsed + external - before.external);
}, 20);
const handled = await settle();
clearInterval(sampler);
const resident = process.resourceUsage().maxRSS * 1_024 - before.rss;
console.log(JSON.stringify({ resident, held, handled } satisfies Peak));
process.exit();

async function readySortie(): Promise<() => Promise<number>> {
  const connection = await connect({ url }, 5_000);
  return async () => {
    const { acked } = await invokeOn({ app }, keeping(connection));
    disconnect(connection);
    return acked;
  };
}

async function readyBare(): Promise<() => Promise<number>> {
  const nc = await wsconnect({ servers: url });
  const consumer = await jetstream(nc).consumers.get("BENCH_MEMORY", "worker");
  return async () => {
    let handled = 0;
    const ask = how === "bare" ? { max_messages: Number(count) } : { max_bytes: 16 * 1_024 * 1_024 };
    while (handled < Number(count)) {
      const before = handled;
      try {
        for await (const message of await consumer.fetch({ ...ask, expires: how === "bare" ? 10_000 : 1_000 })) {
          await handle();
          message.ack();
          handled += 1;
        }
      } catch {} // where the next message does not fit, the client throws what the server says
      if (handled === before) break; // it was cut off
    }
    await nc.flush();
    return handled;
  };
}
