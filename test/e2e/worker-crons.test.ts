import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LocalWorker, startWorker } from "../../scripts/worker.ts";
import { serve } from "../../src/adapters/cloudflare.ts";
import { createApp, type StreamDefinition } from "../../src/index.ts";
import { createSchedules } from "../../src/schedule/schedules.ts";
import { bundleWorker } from "../support/bundle.ts";
import { type Monitoring, monitoring } from "../support/monitoring.ts";
import { type System, startSystem } from "../support/system.ts";
import { app } from "./workers/crons.ts";

let monitor: Monitoring;
let system: System;
let worker: LocalWorker;
const logs: Record<string, unknown>[] = [];

beforeAll(async () => {
  monitor = await monitoring();
  const [started, script] = await Promise.all([startSystem(app, monitor), bundleWorker("crons.ts")]);
  system = started;
  const bindings = { NATS_URL: system.server.url };
  worker = await startWorker({ script, bindings, onLog: (line) => logs.push(JSON.parse(line)) });
});
afterAll(async () => {
  await worker[Symbol.asyncDispose]();
  await system[Symbol.asyncDispose]();
});

const connected = async () => (await monitor.connections("all")).length;
const handled = () => logs.filter(({ event }) => event === "done").map(({ data }) => data);

describe("cron triggers", () => {
  it("start what the code says of each: some consumers, the release function, or both over one connection", async () => {
    const schedules = createSchedules(await system.connect(), app.streams);
    await Promise.all([system.publish("jobs.one", "first"), system.publish("jobs.two", "second")]);
    const before = await connected();
    expect(await worker.fire("*/5 * * * *")).toMatchObject({ outcome: "ok" });
    await expect.poll(handled).toEqual(["first"]);
    expect(await worker.fire("0  * * * *")).toMatchObject({ outcome: "ok" });
    await expect.poll(handled).toEqual(["first", "second"]);
    await schedules.schedule("jobs.two", "released", { in: "10ms" });
    expect(await worker.fire("* * * * *")).toMatchObject({ outcome: "ok" });
    await expect
      .poll(() => logs.find(({ event }) => event === "release"))
      .toMatchObject({ streams: [{ released: 1 }] });
    expect(handled()).toHaveLength(2); // it released, and handled nothing
    expect((await connected()) - before).toBe(3);
    await expect.poll(async () => (await monitor.connections()).length).toBe(1); // the test's own
  });

  it("that the code does not know fail, and say so", async () => {
    expect(await worker.fire("30 4 * * *")).toMatchObject({ outcome: "exception" });
    const failed = () => logs.find(({ event }) => event === "failed");
    await expect.poll(failed).toMatchObject({ error: expect.stringContaining('"30 4 * * *"') });
    expect(failed()?.error).toContain('"*/5 * * * *"');
  });

  it("of a plan leave the rest to the next one", async () => {
    await Promise.all(Array.from({ length: 100 }, (_, n) => system.publish("jobs.many", n)));
    expect(await worker.fire("0 0 * * *")).toMatchObject({ outcome: "ok" });
    const report = () => logs.findLast(({ event }) => event === "invocation");
    await expect
      .poll(report)
      .toMatchObject({ consumers: [{ consumer: "many", acked: 40, ended: "budget", more: true }] });
  });
});

describe("serve", () => {
  it("refuses what cannot be, at the deploy", () => {
    const stream = app.streams[0] as StreamDefinition;
    const bare = createApp({ streams: [stream] });
    const consumer = { kind: "consumer", name: "c" } as const;
    expect(() => serve(bare, { crons: { "* * * * *": { consumers: [consumer] } } })).toThrow(
      /consumer "c" has no handler/,
    );
    const release = "release" as const;
    expect(() => serve(bare, { crons: { "* * * * *": release, "*  * * * *": release } })).toThrow(
      /each expression once/,
    );
    expect(() => serve(bare, { crons: { "0 * * * * *": release } })).toThrow(/five fields/);
    expect(() => serve(bare, { crons: { "* * * * *": { consumers: [] } } })).toThrow(/one at least/);
    expect(() => serve(bare, { crons: { "* * * * *": "realease" as typeof release } })).toThrow(/"release", or/);
    for (const cron of ["99 99 99 99 99", "a b c d e", "* * * * MOONDAY", "* 24 * * *"])
      expect(() => serve(bare, { crons: { [cron]: release } }), cron).toThrow(/five fields/);
    // all that Cloudflare takes, who knows more than croner does
    for (const cron of ["5/15 22-4 L-3 * *", "59 23 LW JAN-mar *", "0 18 ? * 6L", "0 0 15W 1,6 *", "0 0 * * MON#2,7"])
      expect(() => serve(bare, { crons: { [cron]: release } }), cron).not.toThrow();
    expect(() => serve(bare, { crons: {} })).toThrow(/crons: expected one at least/);
    const consumers = (...all: unknown[]) => ({ "* * * * *": { consumers: all as (typeof consumer)[] } });
    const inThere = 'crons["* * * * *"].consumers[0]: expected a consumer';
    expect(() => serve(bare, { crons: consumers(undefined) })).toThrow(
      `${inThere} as defineConsumer made it, got undefined; a module that imports itself in a circle has none yet`,
    );
    expect(() => serve(bare, { crons: consumers("billing") })).toThrow(
      `${inThere} as defineConsumer made it, got "billing"`,
    );
    expect(() => serve(bare, { budget: 0 })).toThrow(/budget: expected a second or more, got 0 ms/);
    expect(() => serve(bare, { concurrency: 0 })).toThrow(/concurrency/);
    expect(() => serve(bare, { budget: "16m" })).toThrow(/15 minutes/);
    expect(() => serve(bare, { plan: "gold" as "paid" })).toThrow(/expected "free" or "paid", got "gold"/);
  });
});
