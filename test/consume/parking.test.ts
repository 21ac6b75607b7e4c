import { afterAll, describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed } from "../../src/index.ts";
import { altered } from "../support/connections.ts";
import { type System, startSystem } from "../support/system.ts";

const jobs = defineStream("JOBS", { subjects: { "jobs.a": z.object({ n: z.number() }) }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const systems: System[] = [];
afterAll(() => Promise.all(systems.map((system) => system[Symbol.asyncDispose]())));

/** A message whose retries are parked, where the first acknowledgement of the original is lost with its connection. */
async function parkedAndLost(ackWait: "1s" | "20s", fails: (attempt: number) => boolean) {
  const seen: number[] = [];
  const retry = { attempts: 3, backoff: fixed("5s") };
  const worker = defineConsumer(jobs, "worker", { deadLetter: "dead.jobs", ackWait, maxAckPending: 10, retry });
  const app = createApp({ streams: [jobs, dead] }).on(worker, ({ attempt }) => {
    seen.push(attempt);
    if (fails(attempt)) throw new Error("not now");
  });
  const system = await startSystem(app);
  systems.push(system);
  await system.publish("jobs.a", { n: 1 });
  const connect = async () => {
    const connection = await system.connect();
    return altered(connection, {
      request: (subject, ...rest) =>
        subject.startsWith("$JS.ACK.JOBS.") ? new Promise(() => {}) : connection.request(subject, ...rest),
    });
  };
  await system.invoke({ connect, budgetMs: 1_500 });
  const state = async (stream: string) => (await system.jsm.streams.info(stream)).state.messages;
  const kept = async () => Promise.all(["JOBS", "SORTIE_PARKED", "SORTIE_ATTEMPTS", "DEAD"].map(state));
  return { system, seen, kept };
}

describe.concurrent("a parked message whose original was not acknowledged", { timeout: 40_000 }, () => {
  it("is started once for each attempt, and the original is acknowledged when it comes again", async () => {
    const { system, seen, kept } = await parkedAndLost("1s", (attempt) => attempt < 3);
    await expect
      .poll(async () => (await system.invoke()) && kept(), { timeout: 5_000, interval: 300 })
      .toEqual([0, 1, 1, 0]);
    expect(seen).toEqual([1]);
    await expect
      .poll(async () => (await system.invoke()) && kept(), { timeout: 25_000, interval: 300 })
      .toEqual([0, 0, 0, 0]);
    expect(seen).toEqual([1, 2, 3]);
  });

  it("takes the original along when it leaves", async () => {
    const { system, seen, kept } = await parkedAndLost("20s", (attempt) => attempt < 2);
    await expect.poll(async () => (await system.invoke()) && seen.length, { timeout: 15_000, interval: 300 }).toBe(2);
    expect(await kept()).toEqual([0, 0, 0, 0]);
  });

  it("is one dead letter where each attempt fails", async () => {
    const { system, seen, kept } = await parkedAndLost("1s", () => true);
    await expect
      .poll(async () => (await system.invoke()) && kept(), { timeout: 25_000, interval: 300 })
      .toEqual([0, 0, 0, 1]);
    expect(seen).toEqual([1, 2, 3]);
  });
});
