import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { planSlots } from "../../src/consume/slots.ts";
import { createApp, defineConsumer, defineStream, fixed } from "../../src/index.ts";
import { type System, startSystem } from "../support/system.ts";

const Job = z.object({ n: z.number(), customer: z.string().default("one") });
const jobs = defineStream("JOBS", { subjects: { "jobs.a": Job }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const base = { deadLetter: "dead.jobs", retry: { attempts: 3, backoff: fixed(20) } } as const;

let system: System | undefined;
afterEach(() => system?.[Symbol.asyncDispose]());

interface Started {
  readonly at: number;
  readonly customer: string;
  readonly attempt: number;
}

async function start(
  rateLimit: NonNullable<Parameters<typeof defineConsumer<(typeof jobs)["schemas"]>>[2]["rateLimit"]>,
) {
  const starts: Started[] = [];
  const worker = defineConsumer(jobs, "worker", { ...base, rateLimit });
  const app = createApp({ streams: [jobs, dead] }).on(worker, ({ data: { customer }, attempt }) => {
    starts.push({ at: Date.now(), customer, attempt });
  });
  system = await startSystem(app);
  return { system, starts };
}

/** The most starts within any window that is `ms` long. */
function most(starts: readonly Started[], ms: number): number {
  const at = starts.map((one) => one.at).toSorted((a, b) => a - b);
  return Math.max(...at.map((from) => at.filter((time) => time >= from && time < from + ms).length));
}

describe("a rate limit", () => {
  it("holds across invocations that run side by side, and lets through what it allows", async () => {
    const { system, starts } = await start({ messages: 100, per: "1s" });
    for (let n = 0; n < 150; n++) await system.publish("jobs.a", { n });
    await Promise.all(Array.from({ length: 4 }, () => system.invoke()));
    expect(starts).toHaveLength(150);
    expect(most(starts, 1_000)).toBeLessThanOrEqual(105);
    expect(starts.map(({ attempt }) => attempt)).toEqual(starts.map(() => 1));
    const info = await system.jsm.consumers.info("JOBS", "worker");
    expect(info).toMatchObject({ num_pending: 0, num_ack_pending: 0 });
  });

  it("holds over one invocation after the other, which leaves when nothing more can be started in its time", async () => {
    const { system, starts } = await start({ messages: 2, per: "1s" });
    for (let n = 0; n < 5; n++) await system.publish("jobs.a", { n });
    const first = await system.invoke({ budgetMs: 900 });
    expect(first.consumers).toMatchObject([{ ended: "limited", retried: 0, unconfirmed: 0 }]);
    expect(first.consumers[0]?.pulled).toBeLessThan(5); // what cannot be started is not pulled either
    await expect.poll(async () => (await system.invoke()) && starts.length, { timeout: 10_000 }).toBe(5);
    expect(most(starts, 1_000)).toBeLessThanOrEqual(3);
    expect(starts.map(({ attempt }) => attempt)).toEqual([1, 1, 1, 1, 1]);
  });

  it("lets as many start at once after a rest as its burst says", async () => {
    const { system, starts } = await start({ messages: 10, per: "10m", burst: 3 });
    for (let n = 0; n < 5; n++) await system.publish("jobs.a", { n });
    const { consumers } = await system.invoke({ budgetMs: 2_000 });
    expect(consumers).toMatchObject([{ acked: 3, ended: "limited" }]);
    expect(starts).toHaveLength(3);
  });

  it("by key leaves other keys alone", async () => {
    const { system, starts } = await start({ messages: 1, per: "10m", key: ({ data }) => data.customer });
    for (let n = 0; n < 20; n++) await system.publish("jobs.a", { n, customer: "greedy" });
    for (let n = 0; n < 5; n++) await system.publish("jobs.a", { n, customer: `modest ${n}` });
    const { consumers } = await system.invoke();
    expect(consumers).toMatchObject([{ acked: 6, returned: 19, retried: 0, ended: "drained" }]);
    expect(starts.filter(({ customer }) => customer === "greedy")).toHaveLength(1);
    // they come again when each of them may be started, not before
    expect((await system.invoke()).consumers).toMatchObject([{ pulled: 0 }]);
  });

  it("whose record is missing leaves messages where they are, and the report says so", async () => {
    const { system, starts } = await start({ messages: 100, per: "1s" });
    await system.jsm.streams.delete("SORTIE_RATES");
    await system.publish("jobs.a", { n: 1 });
    const { consumers } = await system.invoke();
    expect(consumers).toMatchObject([{ returned: 1, error: expect.stringMatching(/SORTIE_RATES.*npx sortie apply/) }]);
    expect(starts).toEqual([]);
  });

  it.each([
    [{ messages: 0, per: "1s" }, "expected rateLimit.messages to be a whole number from 1, got 0"],
    [{ messages: 1, per: 0 }, "expected rateLimit.per to be a time, got 0"],
    [{ messages: 1, per: "1s", burst: 0.5 }, "expected rateLimit.burst to be a whole number from 1, got 0.5"],
    [{ messages: 1, per: "1s", key: "customer" as never }, "expected rateLimit.key to be a function, got string"],
  ] as const)("that makes no sense is refused: %o", (rateLimit, error) => {
    expect(() => defineConsumer(jobs, "worker", { ...base, rateLimit })).toThrow(error);
  });
});

describe("slots", () => {
  it("are never more within any time than the limit and its burst, whoever asks for how many and when", () => {
    const asks = fc.array(
      fc.record({ count: fc.integer({ min: 1, max: 20 }), afterMs: fc.integer({ min: 0, max: 3_000 }) }),
    );
    const rates = fc.record({
      everyMs: fc.double({ min: 0.1, max: 500, noNaN: true }),
      burst: fc.integer({ min: 1, max: 10 }),
    });
    fc.assert(
      fc.property(asks, rates, fc.integer({ min: 1, max: 5_000 }), (asked, rate, windowMs) => {
        let [now, next] = [1e12, 0];
        const all: number[] = [];
        for (const { count, afterMs } of asked) {
          now += afterMs;
          const slots = planSlots(next, count, now, Infinity, rate);
          expect(slots.at).toHaveLength(count);
          expect(Math.min(...slots.at)).toBeGreaterThanOrEqual(now);
          all.push(...slots.at);
          next = slots.next;
        }
        const limit = windowMs / rate.everyMs + rate.burst;
        for (const from of all)
          expect(all.filter((at) => at >= from && at < from + windowMs).length).toBeLessThanOrEqual(Math.ceil(limit));
      }),
    );
  });

  it("go on from now where a clock that was wrong has taken those of tomorrow", () => {
    const rate = { everyMs: 10, burst: 1 };
    expect(planSlots(86_400_000, 2, 1_000, Infinity, rate)).toEqual({ at: [1_000, 1_010], next: 1_020 });
    expect(planSlots(900_000, 1, 1_000, Infinity, rate)).toEqual({ at: [900_000], next: 900_010 });
  });

  it("are left out where they come after the latest time, and stay free", () => {
    const rate = { everyMs: 10, burst: 1 };
    expect(planSlots(1_000, 5, 900, 1_025, rate)).toEqual({ at: [1_000, 1_010, 1_020], next: 1_030 });
    expect(planSlots(1_000, 5, 900, 999, rate)).toEqual({ at: [], next: 1_000 });
  });
});
