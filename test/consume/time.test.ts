import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import {
  type ConsumerOptions,
  createApp,
  defineConsumer,
  defineStream,
  fixed,
  type Handler,
  type Schema,
} from "../../src/index.ts";
import { altered } from "../support/connections.ts";
import { type System, startSystem } from "../support/system.ts";

const jobs = defineStream("JOBS", { subjects: { "jobs.a": z.object({ n: z.number() }) }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

function start(
  options: Partial<ConsumerOptions<"jobs.a">>,
  handler: Handler<typeof jobs.schemas, "jobs.a", typeof jobs>,
) {
  const worker = defineConsumer(jobs, "worker", { deadLetter: "dead.jobs", ...options });
  return startSystem(createApp({ streams: [jobs, dead] }).on(worker, handler));
}

async function publish(count: number) {
  await Promise.all(Array.from({ length: count }, (_, n) => system.publish("jobs.a", { n })));
}

/** Uses the processor: nothing else of the function has its turn meanwhile. */
function burn(ms: number): void {
  const until = Date.now() + ms;
  while (Date.now() < until);
}

describe("handlers that use the processor", () => {
  it.each(["a schema that takes its time", "in batches", "a retry"])(
    "have what they did settled, and the next one looks at the time: %s",
    { timeout: 60_000 },
    async (kind) => {
      const Job = z.object({ n: z.number() });
      const schema = kind === "a schema that takes its time" ? Job.refine(async () => true) : Job;
      const busy = defineStream("BUSY", { subjects: { busy: schema }, retention: "workqueue" });
      const worker = defineConsumer(busy, "worker", {
        deadLetter: "dead.busy",
        concurrency: 3,
        retry: { attempts: 3, backoff: fixed(20) },
      });
      let isRetry = kind !== "a retry";
      let [starts, handled] = [0, 0];
      const handle = (messages: number) => {
        if (!isRetry) throw new Error("once");
        starts += 1;
        burn(700);
        handled += messages;
      };
      const empty = createApp({ streams: [busy, dead] });
      const app =
        kind === "in batches"
          ? empty.handleBatch(worker, ({ length }) => handle(length), { size: 2 })
          : empty.on(worker, () => handle(1));
      system = await startSystem(app);
      for (let n = 0; n < 6; n++) await system.publish("busy", { n });
      if (!isRetry) {
        await system.invoke({ budgetMs: 300 });
        isRetry = true;
        await sleep(100);
      }
      const { consumers } = await system.invoke({ budgetMs: 2_000 });
      expect(starts).toBeLessThanOrEqual(2);
      expect(consumers).toMatchObject([{ acked: handled, unconfirmed: 0 }]);
      expect(consumers[0]?.returned).toBeGreaterThan(0);
    },
  );

  it("do not keep the server from hearing of what is in hand, between two of them", async () => {
    system = await start({ concurrency: 1, ackWait: "1s" }, () => burn(400));
    await publish(8);
    const { consumers } = await system.invoke({ budgetMs: 20_000 });
    expect(consumers).toMatchObject([{ acked: 8, leaseLost: 0, unconfirmed: 0 }]);
    expect((await system.jsm.consumers.info("JOBS", "worker")).num_redelivered).toBe(0);
  });

  it.each([
    ["and answer at once", 16, 200, burn],
    ["before they await", 100, 50, async (ms: number) => burn(ms)],
  ])(
    "%s: none is started when the time is over, and what was not started is handed back",
    { timeout: 60_000 },
    async (...[, concurrency, ms, handle]) => {
      const budgetMs = 2_000;
      let busy = true;
      let starts: { at: number; attempt: number }[] = [];
      let [atOneGo, mostAtOneGo] = [0, 0];
      system = await start({ concurrency }, ({ attempt }) => {
        starts.push({ at: Date.now(), attempt });
        if (busy && atOneGo++ === 0) setImmediate(() => (atOneGo = 0));
        mostAtOneGo = Math.max(mostAtOneGo, atOneGo);
        return busy ? handle(ms) : undefined;
      });
      await publish(60);
      const deadline = Date.now() + budgetMs;
      const { consumers } = await system.invoke({ deadline });
      expect(Date.now()).toBeLessThan(deadline);
      expect(consumers[0]).toMatchObject({ acked: starts.length, retried: 0, unconfirmed: 0, ended: "budget" });
      expect(consumers[0]?.returned).toBeGreaterThan(0);
      const inTime = starts.filter(({ at }) => at < deadline - budgetMs / 5);
      expect(starts).toEqual(inTime);
      expect(mostAtOneGo).toBe(1); // timers and the network have their turn as well

      busy = false;
      starts = [];
      await system.settle();
      expect(starts).toHaveLength(60 - inTime.length);
      expect(starts.every(({ attempt }) => attempt === 1)).toBe(true);
    },
  );
});

describe("a handler whose time is over before it starts", () => {
  it("behind its schema, is not started: its message is handed back at no attempt", async () => {
    const over = Promise.withResolvers<void>();
    const slow: Schema<{ n: number }> = {
      "~standard": {
        version: 1,
        vendor: "test",
        async validate(value) {
          const job = value as { n: number };
          if (job.n === 1) await over.promise;
          return { value: job };
        },
      },
    };
    const slowly = defineStream("SLOWLY", { subjects: { "slowly.a": slow }, retention: "workqueue" });
    const worker = defineConsumer(slowly, "worker", { deadLetter: "dead.slowly" });
    const starts: number[][] = [];
    const app = createApp({ streams: [slowly, dead] }).on(worker, async ({ data, attempt }, { signal }) => {
      starts.push([data.n, attempt]);
      if (data.n === 1) return;
      await new Promise((resolve) => signal.addEventListener("abort", resolve));
      over.resolve();
    });
    system = await startSystem(app);
    for (const n of [0, 1]) await system.publish("slowly.a", { n });
    const { consumers } = await system.invoke({ budgetMs: 2_000 });
    expect(consumers[0]).toMatchObject({ acked: 1, returned: 1, retried: 0, unconfirmed: 0 });
    expect(starts).toEqual([[0, 1]]);
    await system.settle();
    expect(starts).toEqual([
      [0, 1],
      [1, 1],
    ]);
  });

  it("behind what is written down of it, is not started either", async () => {
    const over = Promise.withResolvers<void>();
    const starts: number[][] = [];
    system = await start({ retry: { attempts: 3, backoff: fixed(500) } }, async ({ data, attempt }, { signal }) => {
      starts.push([data.n, attempt]);
      if (data.n === 1 && attempt === 1) throw new Error("once");
      if (data.n === 1) return;
      await new Promise((resolve) => signal.addEventListener("abort", resolve));
      over.resolve();
    });
    await system.publish("jobs.a", { n: 1 });
    await system.invoke();
    await system.publish("jobs.a", { n: 0 });
    let written = 0;
    const { consumers } = await system.invoke({
      linger: "until-budget",
      budgetMs: 3_000,
      async connect() {
        const connection = await system.connect();
        const request: typeof connection.request = async (subject, ...rest) => {
          if (subject.startsWith("sortie.attempts.") && written++ === 0) await over.promise;
          return connection.request(subject, ...rest);
        };
        return altered(connection, { request });
      },
    });
    expect(consumers[0]).toMatchObject({ acked: 1, returned: 1, retried: 0, unconfirmed: 0 });
    expect(written).toBeGreaterThan(0);
    const before = [
      [1, 1],
      [0, 1],
    ];
    expect(starts).toEqual(before);
    await system.settle();
    expect(starts).toEqual([...before, [1, 2]]);
  });
});

describe("one hiccup", () => {
  it("does not cost an invocation its time", async () => {
    const budgetMs = 12_000; // the margin is three seconds at most
    let handled = 0;
    let lastAt = 0;
    system = await start({ concurrency: 4 }, async () => {
      handled += 1;
      lastAt = Date.now();
      if (handled === 40) burn(500);
      await new Promise((resolve) => setTimeout(resolve, 20));
    });
    await publish(3_000);
    const deadline = Date.now() + budgetMs;
    const { consumers } = await system.invoke({ deadline });
    expect(consumers[0]).toMatchObject({ ended: "budget", unconfirmed: 0 });
    expect(lastAt).toBeGreaterThan(deadline - 0.4 * budgetMs); // remembered, it would be nearly half of the time
  });
});
