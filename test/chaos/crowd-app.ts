import { appendFileSync, existsSync } from "node:fs";
import * as z from "zod";
import { type ConsumerOptions, createApp, defineConsumer, defineStream, fixed } from "../../src/index.ts";

/** What a crowd of invocations has to agree on. */
export type Agreement = "keys" | "rate" | "rates" | "breaker" | "batches";

const Job = z.object({ n: z.number(), key: z.string() });

export const perSecond = 200;
export const perSecondAndKey = 40;
export const openForMs = 2_000;
export const concurrency = 4;

const limits: Record<Agreement, Partial<ConsumerOptions<string>>> = {
  keys: { idempotency: { ttl: "1h", key: ({ data }) => (data as z.infer<typeof Job>).key } },
  rates: {
    rateLimit: { messages: perSecondAndKey, per: "1s", key: ({ data }) => (data as z.infer<typeof Job>).key },
    maxAckPending: 50, // less than a busy key has waiting
  },
  rate: { rateLimit: { messages: perSecond, per: "1s" } },
  batches: { retry: { attempts: 6, backoff: fixed(50) } },
  breaker: { breaker: { failureRatio: 0.5, minimum: 20, window: "10s", openFor: openForMs } },
};

/** Which messages break the batch that they are in. */
export function isBroken(n: number): boolean {
  return n % 100 === 7;
}

/**
 * An app whose invocations agree on one thing. Each start of a handler is a line of the file `log`: message, key, attempt,
 * process, time. With the breaker, handlers fail as long as there is a file `<log>.down`.
 */
export function crowdApp(agreement: Agreement, log: string) {
  const jobs = defineStream(`JOBS_${agreement}`, { subjects: { [`jobs.${agreement}`]: Job }, retention: "workqueue" });
  const dead = defineStream(`DEAD_${agreement}`, { captures: [`dead.${agreement}`] });
  const worker = defineConsumer(jobs, "worker", {
    deadLetter: `dead.${agreement}`,
    ackWait: "1s",
    concurrency,
    retry: { attempts: 1_000, backoff: fixed(50) },
    ...limits[agreement],
  });
  const told = ({ data: { n, key }, attempt }: { data: z.infer<typeof Job>; attempt: number }) =>
    appendFileSync(log, `${n} ${key} ${attempt} ${process.pid} ${Date.now()}\n`);
  const streams = createApp({ streams: [jobs, dead] });
  const app =
    agreement === "batches"
      ? streams.handleBatch(worker, async (messages) => {
          for (const message of messages) told(message);
          await new Promise((resolve) => setTimeout(resolve, 3));
          if (messages.some(({ data }) => isBroken(data.n))) throw new Error("one of these breaks it");
        })
      : streams.on(worker, async (message) => {
          told(message);
          await new Promise((resolve) => setTimeout(resolve, 3));
          if (existsSync(`${log}.down`)) throw new Error("the other side is down");
        });
  return { app, jobs, dead, worker };
}
