import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { planSlots, rescaled } from "../../src/consume/slots.ts";
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
  options: { concurrency?: number; maxAckPending?: number } = {},
) {
  const starts: Started[] = [];
  const worker = defineConsumer(jobs, "worker", { ...base, ...options, rateLimit });
  const app = createApp({ streams: [jobs, dead], fanOut: { max: 8 } }).on(worker, ({ data: { customer }, attempt }) => {
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

  it("by key lets others through a long backlog of a greedy one, however little may be outstanding", async () => {
    const key = ({ data }: { data: z.infer<typeof Job> }) => data.customer;
    const limited = await start({ messages: 10, per: "1s", key }, { concurrency: 4, maxAckPending: 10 });
    const { system, starts } = limited;
    for (let n = 0; n < 1_000; n++) void system.publish("jobs.a", { n, customer: "greedy" });
    for (let n = 0; n < 20; n++) await system.publish("jobs.a", { n, customer: `modest ${n}` });
    const report = await system.invoke({ budgetMs: 4_500, linger: "until-budget" });
    const modest = starts.filter(({ customer }) => customer.startsWith("modest"));
    expect(modest).toHaveLength(20);
    const greedy = starts.filter(({ customer }) => customer === "greedy");
    expect(greedy.length).toBeGreaterThan(15);
    expect(most(greedy, 1_000)).toBeLessThanOrEqual(11);
    expect(report.consumers[0]).toMatchObject({ retried: 0, unconfirmed: 0 });
    // each has been put off once, to a time of its own
    expect(report.consumers[0]?.returned).toBeLessThan(1_100);
    const parked = await system.jsm.consumers.info("SORTIE_PARKED", "JOBS~worker");
    expect(parked.num_pending + parked.num_ack_pending).toBeGreaterThan(800);
    expect((await system.jsm.consumers.info("JOBS", "worker")).num_pending).toBe(0);
    // what comes now is behind them, and they go on at their rate
    await system.publish("jobs.a", { n: -1, customer: "greedy" });
    const before = starts.length;
    const { consumers } = await system.invoke({ budgetMs: 3_000, linger: "until-budget" });
    expect(starts.length - before).toBeGreaterThan(10);
    expect(consumers[0]?.pulled).toBeLessThan(100);
    expect(starts.map(({ attempt }) => attempt)).toEqual(starts.map(() => 1));
  });

  it("by key is used although handlers of others have all the places", async () => {
    const key = ({ data }: { data: z.infer<typeof Job> }) => data.customer;
    const busy: Started[] = [];
    const worker = defineConsumer(jobs, "worker", {
      ...base,
      concurrency: 2,
      rateLimit: { messages: 2, per: "1s", key },
    });
    const app = createApp({ streams: [jobs, dead] }).on(worker, async ({ data: { customer }, attempt }) => {
      if (customer === "one") busy.push({ at: Date.now(), customer, attempt });
      else await new Promise((resolve) => setTimeout(resolve, 150 + Math.random() * 200));
    });
    system = await startSystem(app);
    for (let n = 0; n < 12; n++) await system.publish("jobs.a", { n });
    for (let n = 0; n < 60; n++) await system.publish("jobs.a", { n, customer: `other ${n}` });
    await system.invoke({ budgetMs: 6_000, linger: "until-budget" });
    expect(busy.length).toBeGreaterThanOrEqual(6); // of 11: with the starts that it lost it was 3
  });

  it("holds where reading a message takes its time", async () => {
    const validate = async (value: unknown) => {
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 500));
      return { value };
    };
    const slow = defineStream("SLOW", {
      subjects: { slow: { "~standard": { version: 1, vendor: "test", validate } } as const },
      retention: "workqueue",
    });
    const starts: Started[] = [];
    const rateLimit = { messages: 20, per: "1s" } as const;
    const worker = defineConsumer(slow, "worker", { deadLetter: "dead.slow", concurrency: 64, rateLimit });
    const app = createApp({ streams: [slow, dead] }).on(worker, ({ attempt }) => {
      starts.push({ at: Date.now(), customer: "", attempt });
    });
    system = await startSystem(app);
    for (let n = 0; n < 50; n++) await system.publish("slow", { n });
    expect((await system.invoke()).consumers).toMatchObject([{ acked: 50 }]);
    expect(most(starts, 1_000)).toBeLessThanOrEqual(22);
  });

  it("has more to do where the next slot is near, for one invocation and not for several", async () => {
    const { system } = await start({ messages: 20, per: "1s" });
    for (let n = 0; n < 200; n++) await system.publish("jobs.a", { n });
    const asked: number[] = [];
    const onMore = (places: readonly unknown[]) => void asked.push(places.length);
    const { consumers } = await system.invoke({ budgetMs: 2_000, onMore });
    expect(consumers).toMatchObject([{ ended: "limited", more: true }]);
    expect(asked).toEqual([1]);
  });

  it("that is loosened is heeded by what comes next", async () => {
    const { system } = await start({ messages: 1, per: "10m" });
    const app = (messages: number) => {
      const worker = defineConsumer(jobs, "worker", { ...base, rateLimit: { messages, per: "10m" } });
      return createApp({ streams: [jobs, dead] }).on(worker, () => {});
    };
    for (let n = 0; n < 30; n++) await system.publish("jobs.a", { n });
    await system.invoke({ budgetMs: 1_000, bindings: app(1).bindings });
    const { consumers } = await system.invoke({ budgetMs: 3_000, bindings: app(6_000).bindings });
    expect(consumers[0]?.acked).toBeGreaterThan(10);
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
    [{ messages: 1, per: 0 }, "expected rateLimit.per of 100 ms or more, which is what timers can keep to, got 0 ms"],
    [{ messages: 1, per: "1s", burst: 0.5 }, "expected rateLimit.burst to be a whole number from 1, got 0.5"],
    [{ messages: 1, per: "1s", key: "customer" as never }, "expected rateLimit.key to be a function, got string"],
  ] as const)("that makes no sense is refused: %o", (rateLimit, error) => {
    expect(() => defineConsumer(jobs, "worker", { ...base, rateLimit })).toThrow(error);
  });
});

describe("slots", () => {
  it("are never more within any time than the limit and its burst, whoever asks for how many and when", () => {
    const asks = fc.array(
      fc.record({
        waited: fc.integer({ min: 0, max: 20 }),
        fresh: fc.integer({ min: 0, max: 20 }),
        afterMs: fc.integer({ min: 0, max: 3_000 }),
        patienceMs: fc.constantFrom(0, 1_000, Infinity),
      }),
    );
    const rates = fc.record({
      everyMs: fc.double({ min: 0.1, max: 500, noNaN: true }),
      burst: fc.integer({ min: 1, max: 10 }),
    });
    fc.assert(
      fc.property(asks, rates, fc.integer({ min: 1, max: 5_000 }), (asked, rate, windowMs) => {
        let now = 1e12;
        let known = { next: 0, line: 0 };
        const all: number[] = [];
        for (const { waited, fresh, afterMs, patienceMs } of asked) {
          now += afterMs;
          const latest = now + patienceMs;
          const ask = (count: number, fresh: boolean) => Array.from({ length: count }, () => ({ fresh, latest }));
          const { slots, ...then } = planSlots(known, [...ask(waited, false), ...ask(fresh, true)], now, rate);
          expect(slots).toHaveLength(waited + fresh);
          const at = slots.flatMap((slot) => ("at" in slot ? slot.at : []));
          const later = slots.flatMap((slot) => ("again" in slot ? slot.again : []));
          expect(Math.min(Infinity, ...at, ...later)).toBeGreaterThanOrEqual(now);
          expect(Math.max(0, ...at)).toBeLessThanOrEqual(now + patienceMs);
          expect(new Set(later.filter((time) => time < now + 3_600_000)).size).toBe(
            later.filter((time) => time < now + 3_600_000).length,
          );
          all.push(...at);
          known = then;
        }
        const limit = windowMs / rate.everyMs + rate.burst;
        for (const from of all)
          expect(all.filter((at) => at >= from && at < from + windowMs).length).toBeLessThanOrEqual(Math.ceil(limit));
      }),
    );
  });

  const rate = { everyMs: 10, burst: 1 };
  const [hour, tomorrow] = [3_600_000, 86_400_000];
  const ask = (count: number, fresh: boolean, latest = Infinity) =>
    Array.from({ length: count }, () => ({ fresh, latest }));
  const at = (...times: number[]) => times.map((time) => ({ at: time }));
  const again = (...times: number[]) => times.map((time) => ({ again: time }));

  it("go on from now where a clock that was wrong has taken those of tomorrow", () => {
    const known = { next: tomorrow, line: tomorrow };
    expect(planSlots(known, ask(2, true), 1_000, rate)).toMatchObject({ slots: at(1_000, 1_010), next: 1_020 });
    expect(planSlots({ next: 900_000, line: 0 }, ask(1, true), 1_000, rate)).toMatchObject({ slots: at(900_000) });
  });

  it("are left out where they come after the latest time, and stay free", () => {
    const known = { next: 1_000, line: 0 };
    const slots = [...at(1_000, 1_010, 1_020), ...again(1_030, 1_040)];
    expect(planSlots(known, ask(5, false, 1_025), 900, rate)).toEqual({ slots, next: 1_030, line: 1_040 });
    expect(planSlots(known, ask(1, false, 999), 900, rate)).toEqual({ slots: again(1_000), next: 1_000, line: 1_000 });
  });

  it("are given to those that were put off before those that come, which are put off behind them", () => {
    const line = { next: 1_030, line: 2_000 };
    const asks = [...ask(1, false, 1_100), ...ask(2, true, 1_100)];
    const slots = [...at(1_030), ...again(2_010, 2_020)];
    expect(planSlots(line, asks, 1_025, rate)).toEqual({ slots, next: 1_040, line: 2_020 });
    // nobody has come for these: what was in line may be gone
    const unused = planSlots(line, ask(3, true, 1_100), 1_045, rate);
    expect(unused.slots).toEqual([...at(1_045), ...again(2_010, 2_020)]);
  });

  it("are not looked for beyond an hour, in which a limit may be loosened", () => {
    const { slots } = planSlots({ next: 0, line: hour - 5 }, ask(3, false, -1), 0, rate);
    expect(slots).toEqual(again(hour, hour, hour));
  });

  it("have one line, though hosts' clocks are apart", () => {
    const line = { next: 1_030, line: 1_000 + hour + 50 };
    expect(planSlots(line, ask(1, true, 1_000), 1_000, rate).slots).toEqual(again(1_000 + hour + 50));
  });

  it("are waited for by those who can, and are then asked for again, in their turn", () => {
    const asks = ask(3, false, 900).map((one) => ({ ...one, waitsUntil: 1_015 }));
    const { slots, line } = planSlots({ next: 1_000, line: 2_000 }, asks, 900, rate);
    expect(slots).toEqual(again(1_000, 1_010, 2_010));
    expect(line).toBe(2_010);
  });

  it("are nearer where the limit has been loosened, and further off where it was tightened", () => {
    expect(rescaled({ next: 600_000, line: 1_200_000 }, 600_000, 1_000, 0)).toEqual({ next: 1_000, line: 2_000 });
    expect(rescaled({ next: 900, line: 0 }, 100, 200, 1_000)).toEqual({ next: 900, line: 0 });
  });
});
