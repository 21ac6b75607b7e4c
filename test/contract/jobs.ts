import * as z from "zod";
import type { App } from "../../src/app.ts";
import {
  type ConsumerOptions,
  createApp,
  defineConsumer,
  defineStream,
  fixed,
  type HandlerContext,
  type Message,
} from "../../src/index.ts";
import type { Observer, System } from "../support/system.ts";

/** Starts a server of one's own with an app applied to it. */
export type Start = (app: Pick<App, "streams" | "bindings" | "fanOut">) => Promise<System>;

const Job = z.object({ n: z.number() });

/** What the contract's invocations work on: a work queue, which also takes what their handlers publish. */
export const jobs = defineStream("JOBS", {
  subjects: { "jobs.do": Job, "jobs.done": Job },
  retention: "workqueue",
});
export const dead = defineStream("DEAD", { captures: ["dead.>"] });

export function worker(
  options: Partial<ConsumerOptions<"jobs.do", Message<"jobs.do", { n: number }>>> = {},
  stream = jobs,
) {
  const retry = { attempts: 3, backoff: fixed(20) };
  return defineConsumer(stream, "worker", { filter: "jobs.do", deadLetter: "dead.jobs", retry, ...options });
}

export type JobHandler = (
  message: Message<"jobs.do", { n: number }>,
  context: HandlerContext<typeof jobs | typeof dead>,
) => unknown;

export function appOf(consumer: ReturnType<typeof worker>, handler: JobHandler) {
  const { stream } = consumer;
  return createApp({ streams: [stream, { ...dead, replicas: stream.replicas }] }).on(consumer, handler);
}

/** Publishes jobs as a producer that is not Sortie's. */
export async function publishJobs({ js }: Observer, count: number, from = 1): Promise<void> {
  const jobFor = (n: number) => js.publish("jobs.do", JSON.stringify({ n }));
  await Promise.all(Array.from({ length: count }, (_, index) => jobFor(from + index)));
}

/** Messages by subject, as the server counts them. */
export async function stored({ jsm }: Observer, stream: string): Promise<Record<string, number>> {
  return (await jsm.streams.info(stream, { subjects_filter: ">" })).state.subjects ?? {};
}

export async function deadLetters({ jsm }: Observer) {
  const { state } = await jsm.streams.info("DEAD");
  const letters = [];
  for (let seq = 1; seq <= state.last_seq; seq++) letters.push((await jsm.streams.getMessage("DEAD", { seq }))!);
  return letters;
}

/** What the server still has to do for the jobs' consumer, and what Sortie keeps beside it. */
export async function unfinished({ jsm }: Observer) {
  const { num_pending, num_ack_pending } = await jsm.consumers.info("JOBS", "worker");
  const kept = [];
  for await (const { config, state } of jsm.streams.list())
    if (config.name.startsWith("SORTIE_") && state.messages > 0) kept.push(`${config.name}: ${state.messages}`);
  return { num_pending, num_ack_pending, kept };
}

/** That is how it has to be in the end. */
export const nothing = { num_pending: 0, num_ack_pending: 0, kept: [] };
