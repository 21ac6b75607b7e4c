import { appendFileSync } from "node:fs";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed, RetryAfterError } from "../../src/index.ts";

/** What the handler of a message does; which message does what follows from its number. */
export const fates = ["publishes", "fails once", "fails for good", "times out once", "succeeds"] as const;

/** Twenty messages, of which the last is retried so late that it is parked meanwhile. */
export const messages = Array.from({ length: 20 }, (_, n) => n);
const parked = 19;

export function fateOf(n: number): (typeof fates)[number] | "is parked" {
  return n === parked ? "is parked" : (fates[n % fates.length] as (typeof fates)[number]);
}

export const attempts = 3;
export const ackWaitMs = 1_000;

const Numbered = z.object({ n: z.number() });

/**
 * An app over streams that are named for one run of the harness. Each start of a handler is a line of the file `log`; a
 * `poisonous` message never returns from it.
 */
export function scenario(run: string, log: string, poisonous?: { n: number; kill: () => unknown }) {
  const jobs = defineStream(`JOBS_${run}`, { subjects: { [`jobs.${run}`]: Numbered }, retention: "workqueue" });
  const results = defineStream(`RESULTS_${run}`, { subjects: { [`results.${run}.*`]: Numbered } });
  const dead = defineStream(`DEAD_${run}`, { captures: [`dead.${run}`] });
  const worker = defineConsumer(jobs, "worker", {
    ackWait: ackWaitMs,
    batch: 20,
    concurrency: 5,
    maxAckPending: 100, // so that late retries are parked
    retry: { attempts, backoff: fixed(50) },
    deadLetter: `dead.${run}`,
  });
  const app = createApp({ streams: [jobs, results, dead] }).on(worker, async ({ data: { n }, attempt }, context) => {
    appendFileSync(log, `${n} ${attempt} ${process.pid}\n`);
    if (poisonous?.n === n) await poisonous.kill();
    await new Promise((resolve) => setTimeout(resolve, 5));
    const fate = poisonous ? "publishes" : fateOf(n);
    if (fate === "fails once" && attempt === 1) throw new Error("once");
    if (fate === "fails for good") throw new Error("for good");
    if (fate === "times out once" && attempt === 1) await new Promise(() => {});
    if (fate === "is parked" && attempt === 1) throw new RetryAfterError("later", "5.1s");
    if (fate === "succeeds") return;
    await context.publish(`results.${run}.first`, { n });
    await context.publish(`results.${run}.second`, { n });
  });
  return { app, jobs, results, dead, worker };
}
