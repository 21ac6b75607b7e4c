import { appendFileSync, existsSync } from "node:fs";
import * as z from "zod";
import { type ConsumerOptions, createApp, defineConsumer, defineStream, fixed } from "../../src/index.ts";

/** What a crowd of invocations has to agree on. */
export type Agreement = "keys" | "rate" | "breaker";

const Job = z.object({ n: z.number(), key: z.string() });

export const perSecond = 200;
export const openForMs = 2_000;
export const concurrency = 4;

const limits: Record<Agreement, Partial<ConsumerOptions<string>>> = {
  keys: { idempotency: { ttl: "1h", key: ({ data }) => (data as z.infer<typeof Job>).key } },
  rate: { rateLimit: { messages: perSecond, per: "1s" } },
  breaker: { breaker: { failureRatio: 0.5, minimum: 20, window: "10s", openFor: openForMs } },
};

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
  const app = createApp({ streams: [jobs, dead] }).on(worker, async ({ data: { n, key }, attempt }) => {
    appendFileSync(log, `${n} ${key} ${attempt} ${process.pid} ${Date.now()}\n`);
    await new Promise((resolve) => setTimeout(resolve, 3));
    if (existsSync(`${log}.down`)) throw new Error("the other side is down");
  });
  return { app, jobs, dead, worker };
}
