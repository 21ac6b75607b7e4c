import { appendFileSync } from "node:fs";
import * as z from "zod";
import {
  type BatchResult,
  createApp,
  defineConsumer,
  defineStream,
  fixed,
  type HandlerContext,
  type Message,
  RetryAfterError,
  type Schema,
} from "../../src/index.ts";

/** What the handler of a message does. */
export type Fate = "publishes" | "fails once" | "fails for good" | "times out once" | "succeeds" | "is parked";

/** Twenty messages with all fates among them, of which the last is retried so late that it is parked meanwhile. */
export const messages = Array.from({ length: 20 }, (_, n) => n);

export function fateOf(n: number): Fate {
  if (n === 19) return "is parked";
  return (["publishes", "fails once", "fails for good", "times out once", "succeeds"] as const)[n % 5] as Fate;
}

/** What messages are handled once by, where invocations have to agree: two of those that publish nothing are the same. */
export function keyOf(n: number): number {
  return n === 14 ? 4 : n;
}

/**
 * As many messages as one likes, most of which simply publish. Each strike is an attempt of those whose publish it cuts off,
 * so that there are more of them.
 */
export const soak: ScenarioOptions = {
  fate(n) {
    if (n % 50 === 1) return "fails once";
    return n % 200 === 2 ? "fails for good" : "publishes";
  },
  concurrency: 50,
  attempts: 12,
};

export const ackWaitMs = 1_000;

const Numbered = z.object({ n: z.number() });
const Looked = Numbered.refine(async () => true);

/** As `Numbered`, which looks elsewhere for some messages. */
const Job: Schema<{ n: number }> = {
  "~standard": {
    ...Numbered["~standard"],
    validate: (value) => {
      const { n = 0 } = value as { n?: number };
      return (n % 10 === 4 ? Looked : Numbered)["~standard"].validate(value);
    },
  },
};

/** A failure after which the message is started once more in place. */
class OnceMore extends Error {
  override name = "OnceMore";
}

export interface ScenarioOptions {
  readonly fate?: (n: number) => Fate;
  readonly concurrency?: number;
  /** How often a handler is started. @default 3 */
  readonly attempts?: number;
  /** How many messages a handler takes at once. @default 1 */
  readonly together?: number;
  /** Whether invocations have to agree: on a rate, on keys, and on a circuit breaker that opens now and then. @default no */
  readonly agreeing?: boolean;
  /** A message from whose handler nobody returns. */
  readonly poisonous?: { readonly n: number; readonly kill: () => unknown };
}

/** An app over streams that are named for one run of the harness. Each start of a handler is a line of the file `log`. */
export function scenario(run: string, log: string, options: ScenarioOptions = {}) {
  const { fate = fateOf, concurrency = 5, attempts = 3, together = 1, agreeing = false, poisonous } = options;
  const jobs = defineStream(`JOBS_${run}`, { subjects: { [`jobs.${run}`]: Job }, retention: "workqueue" });
  const results = defineStream(`RESULTS_${run}`, { subjects: { [`results.${run}.*.*`]: Numbered } });
  const dead = defineStream(`DEAD_${run}`, { captures: [`dead.${run}`] });
  const worker = defineConsumer(jobs, "worker", {
    ackWait: ackWaitMs,
    batch: 4 * concurrency,
    concurrency,
    maxAckPending: 100, // so that late retries are parked
    retry: { attempts, backoff: fixed(50), rules: [{ on: OnceMore, do: { inPlace: 1 } }] },
    deadLetter: `dead.${run}`,
    ...(agreeing && {
      rateLimit: { messages: 50, per: "1s" },
      breaker: { failureRatio: 0.4, minimum: 5, window: "2s", openFor: "200ms" },
      idempotency: { key: ({ data }) => `${keyOf(data.n)}`, ttl: "1h" },
    }),
  });
  type Start = Pick<Message<string, { n: number }>, "data" | "attempt">;
  type Context = Pick<HandlerContext<typeof results>, "publish">;
  const handle = async ({ data: { n }, attempt }: Start, { publish }: Context) => {
    appendFileSync(log, `${n} ${attempt} ${process.pid}\n`);
    if (poisonous?.n === n) await poisonous.kill();
    await new Promise((resolve) => setTimeout(resolve, 5));
    const destined = poisonous ? "publishes" : fate(n);
    if (destined === "fails once" && attempt === 1) throw n % 10 === 6 ? new OnceMore("once") : new Error("once");
    if (destined === "fails for good") throw new Error("for good");
    if (destined === "times out once" && attempt === 1) await new Promise(() => {});
    if (destined === "is parked" && attempt === 1) throw new RetryAfterError("later", "5.1s");
    if (destined === "succeeds") return;
    await publish(`results.${run}.${n}.first`, { n });
    await publish(`results.${run}.${n}.second`, { n });
  };
  const empty = createApp({ streams: [jobs, results, dead] });
  const app =
    together === 1
      ? empty.on(worker, handle)
      : empty.handleBatch(
          worker,
          async (messages, { of }) => {
            const failed: BatchResult["failed"][number][] = [];
            const handling = messages.map((message) =>
              handle(message, of(message)).catch((error: unknown) => {
                if (fate(message.data.n) === "fails for good") throw error; // for all of them
                failed.push({ sequence: message.sequence, error });
              }),
            );
            await Promise.all(handling);
            return { failed };
          },
          { size: together },
        );
  return { app, jobs, results, dead, worker };
}
