import { headers } from "@nats-io/nats-core";
import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed } from "../../src/index.ts";
import { asFunction, functionDenied } from "../support/logins.ts";
import { type System, startSystem } from "../support/system.ts";

const Job = z.object({ n: z.number() });
const jobs = defineStream("JOBS", { subjects: { "jobs.a": Job }, retention: "workqueue" });
const results = defineStream("RESULTS", { subjects: { "results.a": Job, "results.b": Job } });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const worker = defineConsumer(jobs, "worker", {
  deadLetter: "dead.jobs",
  retry: { attempts: 2, backoff: fixed(20) },
});

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

describe("what a handler publishes and is refused", () => {
  it("by a full stream fails the message, which is dead-lettered with the reason, and the rest is not published twice", async () => {
    const full = defineStream("FULL", { subjects: { full: Job }, retention: "workqueue", maxMessages: 1 });
    const app = createApp({ streams: [jobs, results, full, dead] }).on(worker, async ({ data }, { publish }) => {
      await publish("results.a", data);
      await publish("full", data);
    });
    system = await startSystem(app);
    await system.publish("jobs.a", { n: 1 });
    await system.publish("jobs.a", { n: 2 });
    await system.settle();
    const dropped = system.events.filter(({ event }) => event === "dead-lettered");
    expect(dropped).toMatchObject([{ error: expect.stringMatching(/stream "FULL" was refused: maximum messages/) }]);
    expect((await system.jsm.streams.info("RESULTS")).state.messages).toBe(2);
    expect((await system.jsm.streams.info("FULL")).state.messages).toBe(1);
    expect((await system.jsm.streams.info("JOBS")).state.messages).toBe(0);
  });

  it("for its subject fails the message before anything is sent", async () => {
    const app = createApp({ streams: [jobs, results, dead] }).on(worker, async ({ data }, { publish }) => {
      void publish("results.a", data);
      void publish("elsewhere" as "results.a", data);
    });
    system = await startSystem(app);
    await system.publish("jobs.a", { n: 1 });
    await system.settle();
    expect(system.events.at(-1)).toMatchObject({
      event: "dead-lettered",
      error: expect.stringMatching(/No stream of this app has a schema for "elsewhere"/),
    });
    expect((await system.jsm.streams.info("RESULTS")).state.messages).toBe(0);
  });

  it("for a lack of permission fails the message at once, and the others go on", async () => {
    const app = createApp({ streams: [jobs, results, dead] }).on(worker, async ({ data }, { publish }) => {
      await publish(data.n === 1 ? "results.b" : "results.a", data);
    });
    system = await startSystem(app, {
      config: functionDenied("publish", "results.b"),
    });
    for (const n of [1, 2, 3]) await system.publish("jobs.a", { n });
    const { consumers, ms } = await system.invoke({ connect: asFunction(system.server), budgetMs: 20_000 });
    expect(consumers[0]).toMatchObject({ acked: 2, unconfirmed: 0 });
    expect(ms).toBeLessThan(15_000);
    expect(system.events[0]).toMatchObject({ sequence: 1, error: expect.stringMatching(/results\.b.*ermission/) });
    expect(JSON.stringify(system.events)).not.toContain("secret");
  });
});

describe("a server that takes four kilobytes", () => {
  it("is enough: a small message is published, handled, parked, and dead-lettered with its story", async () => {
    const parking = defineConsumer(jobs, "worker", {
      deadLetter: "dead.jobs",
      maxAckPending: 100,
      retry: { attempts: 2, backoff: fixed("6s") },
    });
    const app = createApp({ streams: [jobs, results, dead] }).on(parking, async ({ data }, { publish }) => {
      await publish("results.a", data);
      if (data.n === 2) throw new Error("no ".repeat(1_000));
    });
    system = await startSystem(app, { config: "max_payload: 4096" });
    for (const n of [1, 2]) await system.publish("jobs.a", { n });
    expect((await system.invoke()).consumers).toMatchObject([{ acked: 1, retried: 1 }]);
    const now = () => Date.now() + 7_000;
    const { consumers } = await system.invoke({ now, deadline: now() + 5_000 });
    expect(consumers).toMatchObject([{ deadLettered: 1 }]);
    expect(consumers[0]).not.toHaveProperty("error");
    expect((await system.jsm.streams.info("RESULTS")).state.messages).toBe(1);
    const letter = await system.jsm.streams.getMessage("DEAD", { seq: 1 });
    expect(letter?.json()).toEqual({ n: 2 });
    expect(letter?.header.values("Sortie-Attempt").length).toBeGreaterThan(0);
  });
});

describe("what belongs to a message", () => {
  it("carries on its correlation id and its trace", async () => {
    const app = createApp({ streams: [jobs, results, dead] }).on(worker, async ({ data }, { publish, schedule }) => {
      await publish("results.a", data);
      await schedule("results.b", data, { in: 100 });
    });
    system = await startSystem(app);
    const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const own = headers();
    own.set("Sortie-Correlation-Id", "order-7");
    own.set("Traceparent", traceparent); // a foreign producer writes it as it likes
    own.set("tracestate", "vendor=1");
    await system.js.publish("jobs.a", JSON.stringify({ n: 1 }), { headers: own });
    await system.publish("jobs.a", { n: 2 }, "message-2"); // the first of its kind: its id stands for both
    await system.settle();
    const released = async () => {
      const { state } = await system.jsm.streams.info("RESULTS", { subjects_filter: "results.b" });
      return state.subjects?.["results.b"];
    };
    await expect.poll(released).toBe(2);
    const found = new Map<string, (string | undefined)[]>();
    for (let seq = 1; found.size < 4; seq++) {
      const message = await system.jsm.streams.getMessage("RESULTS", { seq });
      if (!message?.subject.startsWith("results.")) continue;
      const { n } = message.json<{ n: number }>();
      const carried = ["Sortie-Correlation-Id", "traceparent", "tracestate"].map((name) => message.header.get(name));
      found.set(`${message.subject} ${n}`, carried);
    }
    expect(Object.fromEntries(found)).toEqual({
      "results.a 1": ["order-7", traceparent, "vendor=1"],
      "results.b 1": ["order-7", traceparent, "vendor=1"],
      "results.a 2": ["message-2", "", ""],
      "results.b 2": ["message-2", "", ""],
    });
  });
});

describe("an id of the handler's own", () => {
  it("is for one message: with the second one it would be taken for the first, and stored nowhere", async () => {
    const app = createApp({ streams: [jobs, results, dead] }).on(worker, async (_, { publish }) => {
      await publish("results.a", { n: 1 }, { id: "same" });
      await publish("results.a", { n: 2 }, { id: "same" });
    });
    system = await startSystem(app);
    await system.publish("jobs.a", { n: 1 });
    await system.invoke();
    expect(system.events).toMatchObject([
      { event: "retried", error: expect.stringContaining('expected an id of its own, got "same"') },
    ]);
  });
});
