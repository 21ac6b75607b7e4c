import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { serve as serveLambda } from "../../src/adapters/aws-lambda.ts";
import { serve as serveWorker } from "../../src/adapters/cloudflare.ts";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";
import { type System, startSystem } from "../support/system.ts";

const jobs = defineStream("JOBS", { subjects: { "jobs.a": z.object({ n: z.number() }) }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

/** A system whose handler notes what it handled. */
async function start(options: { maxAckPending?: number } = {}) {
  const handled: number[] = [];
  const worker = defineConsumer(jobs, "worker", { deadLetter: "dead.jobs", ...options });
  const app = createApp({ streams: [jobs, dead] }).on(worker, ({ data }) => void handled.push(data.n));
  system = await startSystem(app);
  return handled;
}

async function waiting() {
  return (await system.jsm.consumers.info("JOBS", "worker")).num_waiting;
}

describe("an invocation that lingers", () => {
  it("handles what comes while it waits, until its time is over, and leaves no pull behind", async () => {
    const handled = await start();
    const started = Date.now();
    let over = false;
    const invocation = system.invoke({ linger: "until-budget", budgetMs: 4_000 }).finally(() => {
      over = true;
    });
    await expect.poll(waiting).toBe(1);
    for (let n = 0; n < 5; n++) {
      await system.publish("jobs.a", { n });
      await expect.poll(() => handled).toContain(n);
      expect(over).toBe(false);
    }
    const { consumers } = await invocation;
    expect(consumers[0]).toMatchObject({ acked: 5, returned: 0, unconfirmed: 0, ended: "budget" });
    expect(Date.now() - started).toBeLessThan(4_000);
    expect(await waiting()).toBe(0);
  });

  it("leaves when it is told to, and finishes what it has started", async () => {
    const slow = Promise.withResolvers<void>();
    const signals: AbortSignal[] = [];
    const worker = defineConsumer(jobs, "worker", { deadLetter: "dead.jobs", concurrency: 1 });
    system = await startSystem(
      createApp({ streams: [jobs, dead] }).on(worker, async (_, { signal }) => {
        signals.push(signal);
        await slow.promise;
      }),
    );
    for (const n of [1, 2, 3]) await system.publish("jobs.a", { n });
    const leave = new AbortController();
    const invocation = system.invoke({ linger: "until-budget", budgetMs: 60_000, leave: leave.signal });
    await expect.poll(() => signals).toHaveLength(1);
    await expect.poll(waiting).toBe(0);
    leave.abort();
    await expect.poll(async () => (await system.jsm.consumers.info("JOBS", "worker")).num_ack_pending).toBe(1);
    expect(signals[0]?.aborted).toBe(false);
    slow.resolve();
    const { consumers } = await invocation;
    expect(consumers[0]).toMatchObject({ acked: 1, unconfirmed: 0, ended: "budget" });
    expect(signals).toHaveLength(1);
    expect(await waiting()).toBe(0);
    expect((await system.invoke()).consumers[0]).toMatchObject({ acked: 2 });
  });

  it("that waits for more leaves when it is told to, and hands back what comes then", async () => {
    const handled = await start();
    const leave = new AbortController();
    const invocation = system.invoke({ linger: "until-budget", budgetMs: 60_000, leave: leave.signal });
    await expect.poll(waiting).toBe(1);
    leave.abort();
    await system.publish("jobs.a", { n: 1 });
    const { consumers, ms } = await invocation;
    expect(consumers[0]).toMatchObject({ pulled: 1, returned: 1, unconfirmed: 0, ended: "budget" });
    expect(ms).toBeLessThan(20_000);
    expect(handled).toEqual([]);
    expect(await waiting()).toBe(0);
    // who is told before it begins does nothing
    expect((await system.invoke({ leave: leave.signal, linger: "until-budget" })).consumers[0]).toMatchObject({
      pulled: 0,
      ended: "budget",
    });
  });

  it("for a while, leaves when nothing has come for as long", async () => {
    await start();
    await system.publish("jobs.a", { n: 1 });
    const { consumers, ms } = await system.invoke({ linger: "300ms", budgetMs: 20_000 });
    expect(consumers[0]).toMatchObject({ acked: 1, ended: "drained" });
    expect(ms).toBeGreaterThanOrEqual(300);
    expect(ms).toBeLessThan(15_000);
  });

  it("beside another one, as cron ticks that overlap do, handles each message once and misses none", async () => {
    const handled = await start({ maxAckPending: 50 });
    let going = true;
    const published: number[] = [];
    const publishing = (async () => {
      for (let n = 0; going; n++) {
        await system.publish("jobs.a", { n });
        published.push(n);
      }
    })();
    const reports = [];
    for (let tick = 0; tick < 4; tick++) {
      reports.push(system.invoke({ linger: "until-budget", budgetMs: 1_500 }));
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    }
    going = false;
    await publishing;
    for (const { consumers } of await Promise.all(reports)) {
      expect(consumers[0]).toMatchObject({ unconfirmed: 0, retried: 0 });
    }
    await system.settle();
    expect(handled.toSorted((a, b) => a - b)).toEqual(published);
  });

  it("waits also where as many messages are outstanding as may be, and goes on when there is room", async () => {
    const handled = await start({ maxAckPending: 1 });
    for (let n = 0; n < 2; n++) await system.publish("jobs.a", { n });
    const other = await (await system.js.consumers.get("JOBS", "worker")).next({ expires: 5_000 });
    const invocation = system.invoke({ linger: "until-budget", budgetMs: 4_000 });
    await expect.poll(waiting).toBe(1);
    expect(handled).toEqual([]);
    other?.ack();
    await expect.poll(() => handled).toEqual([1]);
    await invocation;
  });

  it("waits while its consumer is paused, and goes on when it is resumed", async () => {
    const handled = await start();
    await system.jsm.consumers.pause("JOBS", "worker", new Date(Date.now() + 60_000));
    await system.publish("jobs.a", { n: 1 });
    const invocation = system.invoke({ linger: "until-budget", budgetMs: 9_000 });
    await expect.poll(waiting).toBe(1);
    expect(handled).toEqual([]);
    await system.jsm.consumers.resume("JOBS", "worker");
    await expect.poll(() => handled).toEqual([1]);
    await invocation;
  });

  it("says at once that its consumer was deleted meanwhile", async () => {
    await start();
    const started = Date.now();
    const invocation = system.invoke({ linger: "until-budget", budgetMs: 20_000 });
    await expect.poll(waiting).toBe(1);
    await system.jsm.consumers.delete("JOBS", "worker");
    expect((await invocation).consumers[0]).toMatchObject({
      ended: "failed",
      error: expect.stringMatching(/"worker" of stream "JOBS" does not exist.*npx sortie apply/),
    });
    expect(Date.now() - started).toBeLessThan(15_000);
  });
});

it.each(["soon", "5 minutes", -1, NaN, ""])("how long to linger is refused at the deploy where it is %j", (linger) => {
  const app = createApp({ streams: [jobs, dead] });
  const refused = expect.objectContaining({ code: "invalid-option", message: expect.stringContaining("linger") });
  for (const serve of [serveLambda, serveWorker]) {
    expect(() => serve(app, { linger: linger as "5m" })).toThrow(refused);
    for (const well of ["drain", "until-budget", "5m", 250] as const) serve(app, { linger: well });
  }
});
