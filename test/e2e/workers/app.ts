import { createApp, defineConsumer, defineStream } from "sortie";
import * as z from "zod";

const jobs = defineStream("JOBS", {
  subjects: { "jobs.do": z.object({ n: z.int(), ms: z.int().default(0) }), "jobs.other": z.string() },
  retention: "workqueue",
});
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const worker = defineConsumer(jobs, "worker", { filter: "jobs.do", deadLetter: "dead.jobs" });
const other = defineConsumer(jobs, "other", { filter: "jobs.other", deadLetter: "dead.jobs" });

/** A job takes `ms`, and is a line in the log when it is handled. */
export const app = createApp({ streams: [jobs, dead], fanOut: { max: 2 } })
  .on(worker, async ({ data: { n, ms } }) => {
    await new Promise((resolve) => setTimeout(resolve, ms));
    console.log(JSON.stringify({ event: "done", n }));
  })
  .on(other, () => {
    console.log(JSON.stringify({ event: "done-other" }));
  });
