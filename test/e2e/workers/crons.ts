import { createApp, defineConsumer, defineStream } from "sortie";
import { serve } from "sortie/cloudflare";
import * as z from "zod";

const jobs = defineStream("JOBS", {
  subjects: { "jobs.one": z.string(), "jobs.two": z.string(), "jobs.many": z.int() },
  schedules: "function",
  maxAge: "1d",
});
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const [one, two, many] = [
  defineConsumer(jobs, "one", { filter: "jobs.one", deadLetter: "dead.jobs" }),
  defineConsumer(jobs, "two", { filter: "jobs.two", deadLetter: "dead.jobs" }),
  defineConsumer(jobs, "many", { filter: "jobs.many", deadLetter: "dead.jobs" }),
];

/** A message is a line in the log when it is handled. */
export const app = createApp({ streams: [jobs, dead] })
  .on(one, ({ data }) => console.log(JSON.stringify({ event: "done", data })))
  .on(two, ({ data }) => console.log(JSON.stringify({ event: "done", data })))
  .on(many, () => {});

export default serve(app, {
  plan: "free",
  budget: "1500ms",
  crons: {
    "*/5 * * * *": { consumers: [one] },
    "* * * * *": "release",
    "0 * * * *": { consumers: [one, two], release: true },
    "0 0 * * *": { consumers: [many] },
  },
});
