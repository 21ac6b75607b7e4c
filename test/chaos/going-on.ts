import { appendFileSync } from "node:fs";
import * as z from "zod";
import type { Place } from "../../src/consume/places.ts";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";

/** What a process that runs one invocation is started with. */
export interface Going {
  readonly url: string;
  readonly log: string;
  readonly budgetMs: number;
  readonly place?: Place | undefined;
  /** Where it dies, if it gets there. */
  readonly dieAt?: string | undefined;
}

/** The waits of going on. */
export const waits = [
  "reading the places of invocations",
  "writing the places of invocations",
  "waiting for the connection's end",
  "waiting for the server to see that",
  "asking for more invocations",
].flatMap((what) => [`before ${what}`, `after ${what}`]);

/** The most connections, for both kinds of invocations. */
export const ceiling = 10;
/** How many invocations without a place are started at the same time. */
export const outside = 2;

/** An app that fans out. Each handler that ends is a line of the file `log`. */
export function goingOn(log: string) {
  const jobs = defineStream("JOBS", { subjects: { "jobs.do": z.object({ n: z.int() }) }, retention: "workqueue" });
  const dead = defineStream("DEAD", { captures: ["dead.>"] });
  const worker = defineConsumer(jobs, "worker", { ackWait: "1s", concurrency: 4, deadLetter: "dead.jobs" });
  const fanOut = { max: 8, connections: ceiling, outside };
  return createApp({ streams: [jobs, dead], fanOut }).on(worker, async ({ data: { n } }) => {
    await new Promise((resolve) => setTimeout(resolve, 15));
    appendFileSync(log, `${n} ${process.pid}\n`);
  });
}
