import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed, type Message, NonRetriableError } from "../../src/index.ts";
import { type System, startSystem } from "../support/system.ts";

const Payment = z.object({ order: z.string(), n: z.number() });
const payments = defineStream("PAYMENTS", { subjects: { "payments.due": Payment }, duplicateWindow: "5s" });
const dead = defineStream("DEAD", { captures: ["dead.>"], duplicateWindow: "5s" });
const charging = defineConsumer(payments, "charging", {
  deadLetter: "dead.payments",
  ackWait: "1s",
  retry: { attempts: 3, backoff: fixed(20) },
  idempotency: { key: ({ data }) => data.order, ttl: "1h" },
});

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

/** A system whose handler is `handler`. */
async function start(handler: (message: Message<string, z.infer<typeof Payment>>) => unknown, consumer = charging) {
  const app = createApp({ streams: [payments, dead] }).on(consumer, (message) => handler(message));
  system = await startSystem(app);
}

const keys = async () => (await system.jsm.streams.info("SORTIE_KEYS")).state.messages;

describe("of messages with the same key", () => {
  it("one is handled, and the others are acknowledged unhandled, in one invocation and in later ones", async () => {
    const handled: string[] = [];
    await start(({ data }) => handled.push(`${data.order}.${data.n}`));
    for (const n of [1, 2, 3]) for (const order of ["a", "b"]) await system.publish("payments.due", { order, n });
    await system.settle();
    await system.publish("payments.due", { order: "a", n: 4 });
    const { consumers } = await system.invoke();
    expect(consumers).toMatchObject([{ pulled: 1, acked: 1, duplicates: 1 }]);
    expect(handled.map((one) => one.slice(0, 1)).toSorted()).toEqual(["a", "b"]);
    expect(system.events.filter(({ event }) => event === "duplicate")).toHaveLength(5);
    const info = await system.jsm.consumers.info("PAYMENTS", "charging");
    expect(info).toMatchObject({ num_pending: 0, num_ack_pending: 0 });
    expect(await keys()).toBe(2);
  });

  it("one waits while another is being handled elsewhere, at no attempt, and is handled where that one failed for good", async () => {
    const running = Promise.withResolvers<void>();
    const failing = Promise.withResolvers<never>();
    const attempts: [n: number, attempt: number][] = [];
    await start(({ data: { n }, attempt }) => {
      attempts.push([n, attempt]);
      if (n > 1) return;
      running.resolve();
      return failing.promise;
    });
    await system.publish("payments.due", { order: "a", n: 1 });
    const first = system.invoke();
    await running.promise;
    await system.publish("payments.due", { order: "a", n: 2 });
    expect((await system.invoke()).consumers).toMatchObject([{ pulled: 1, returned: 1, retried: 0 }]);
    failing.reject(new NonRetriableError("card declined"));
    expect((await first).consumers).toMatchObject([{ deadLettered: 1 }]);
    await system.settle();
    expect(attempts).toEqual([
      [1, 1],
      [2, 1],
    ]);
  });

  it("is claimed again by the message itself where its retry comes, and counts its attempts", async () => {
    const attempts: number[] = [];
    await start(({ attempt }) => {
      attempts.push(attempt);
      if (attempt < 3) throw new Error("not yet");
    });
    await system.publish("payments.due", { order: "a", n: 1 });
    await system.settle();
    expect(attempts).toEqual([1, 2, 3]);
    expect((await system.jsm.streams.info("DEAD")).state.messages).toBe(0);
  });

  it("is given up by an invocation that returns what it has not started", async () => {
    const handled: number[] = [];
    await start(
      async ({ data: { n } }) => {
        handled.push(n);
        await new Promise((resolve) => setTimeout(resolve, 300));
      },
      { ...charging, concurrency: 1 },
    );
    for (const n of [1, 2, 3]) await system.publish("payments.due", { order: `order ${n}`, n });
    const { consumers } = await system.invoke({ budgetMs: 500 });
    expect(consumers[0]?.acked).toBeLessThan(3);
    await system.settle();
    expect([...new Set(handled)].toSorted()).toEqual([1, 2, 3]); // one that was cut off is started again
  });

  it("is remembered where its message was handled although its lease was lost, and the other start of it fails", async () => {
    const running = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const ends = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const handled: number[] = [];
    await start(async ({ data: { n } }) => {
      const at = handled.push(n) - 1;
      running[at]?.resolve();
      await ends[at]?.promise;
    });
    const working = Promise.withResolvers<string>();
    system.tcp.subscribe("$JS.ACK.PAYMENTS.charging.>", { callback: (_, { subject }) => working.resolve(subject) });
    await system.publish("payments.due", { order: "a", n: 1 });
    const first = system.invoke();
    await running[0]?.promise;
    system.tcp.publish(await working.promise, "-NAK"); // it goes to another one, which the first is not told
    const second = system.invoke();
    await running[1]?.promise;
    ends[0]?.resolve();
    expect((await first).consumers).toMatchObject([{ acked: 1 }]);
    ends[1]?.reject(new Error("the card was charged already"));
    await second;
    await system.publish("payments.due", { order: "a", n: 2 });
    await system.settle();
    expect(handled).toEqual([1, 1]);
    expect(system.events.filter(({ event }) => event === "duplicate")).toHaveLength(1);
  });

  it("is asked for again while another invocation has it, whose claim may end long before its time", async () => {
    const running = Promise.withResolvers<void>();
    const end = Promise.withResolvers<void>();
    const handled: number[] = [];
    await start(async ({ data: { n } }) => {
      handled.push(n);
      if (n > 1) return;
      running.resolve();
      await end.promise;
      throw new NonRetriableError("card declined");
    });
    await system.publish("payments.due", { order: "a", n: 1 });
    const first = system.invoke({ budgetMs: 60_000 });
    await running.promise;
    await system.publish("payments.due", { order: "a", n: 2 });
    const second = system.invoke({ budgetMs: 12_000, linger: "5s" });
    setTimeout(() => end.resolve(), 300);
    await first;
    await expect.poll(() => handled).toEqual([1, 2]); // long before the first one's sixty seconds are over
    await second;
  });

  it("is not asked for by everyone, time and again, while one of many messages is being handled", async () => {
    const running = Promise.withResolvers<void>();
    const end = Promise.withResolvers<void>();
    const handled: number[] = [];
    await start(async ({ data: { n } }) => {
      handled.push(n);
      running.resolve();
      await end.promise;
    });
    const asked: string[] = [];
    system.tcp.subscribe("sortie.keys.>", { callback: (_, { subject }) => void asked.push(subject) });
    for (let n = 0; n < 300; n++) void system.publish("payments.due", { order: "a", n });
    const first = system.invoke({ budgetMs: 60_000 });
    await running.promise;
    const { consumers } = await system.invoke({ linger: "until-budget", budgetMs: 3_000 });
    expect(consumers[0]?.pulled).toBeGreaterThan(100);
    expect(asked.length).toBeLessThan(10); // the first claim, and a few that came before it was agreed on
    end.resolve();
    await first;
    await system.settle();
    expect(handled).toHaveLength(1);
  });

  it("is forgotten after its ttl", async () => {
    const handled: number[] = [];
    const short = { ...charging, idempotency: { ...charging.idempotency, ttlMs: 1_100 } } as typeof charging;
    await start(({ data }) => handled.push(data.n), short);
    await system.publish("payments.due", { order: "a", n: 1 });
    await system.invoke();
    await system.publish("payments.due", { order: "a", n: 2 });
    await system.invoke();
    const stored = await system.jsm.streams.getMessage("SORTIE_KEYS", { last_by_subj: "sortie.keys.>" });
    await new Promise((resolve) => setTimeout(resolve, (stored?.time.getTime() ?? 0) + 1_150 - Date.now()));
    await system.publish("payments.due", { order: "a", n: 3 });
    await system.invoke();
    expect(handled).toEqual([1, 3]);
  });
});

describe("a key", () => {
  it("is the message's id unless told otherwise", async () => {
    const handled: number[] = [];
    const byId = { ...charging, idempotency: { ttlMs: 60_000 } } as typeof charging;
    await start(({ data }) => handled.push(data.n), byId);
    await system.publish("payments.due", { order: "a", n: 1 }, "one");
    await system.publish("payments.due", { order: "a", n: 2 }, "two.of * > them");
    await system.invoke();
    expect(handled).toEqual([1, 2]);
    expect(await keys()).toBe(2);
  });

  it.each([
    ["half characters, which UTF-8 cannot tell apart", ["a\ud800", "a\ud801", "a\ufffd"]],
    ["a thousand characters", ["x".repeat(1_000), `${"x".repeat(999)}y`, "é".repeat(1_000)]],
  ])("of %s is told from others", async (_, orders) => {
    const handled: string[] = [];
    await start(({ data }) => void handled.push(data.order));
    for (const order of [...orders, ...orders]) await system.publish("payments.due", { order, n: 1 });
    await system.settle();
    expect(handled.toSorted()).toEqual(orders.toSorted());
    expect((await system.jsm.streams.info("DEAD")).state.messages).toBe(0);
  });

  it("that cannot be had fails the message, which tells it", async () => {
    await start(() => {}, { ...charging, idempotency: { ttlMs: 60_000, key: () => "" } } as typeof charging);
    await system.publish("payments.due", { order: "a", n: 1 });
    await system.publish("payments.due", "no payment");
    await system.settle();
    const letters = await Promise.all(
      [1, 2].map(async (seq) => (await system.jsm.streams.getMessage("DEAD", { seq }))?.header),
    );
    const told = letters.map((header) => [header?.get("Sortie-Reason"), header?.get("Sortie-Error")]);
    expect(told).toContainEqual([
      "attempts-exhausted",
      expect.stringContaining(
        'Consumer "charging": expected idempotency.key to answer a string that is not empty, got an empty one',
      ),
    ]);
    expect(told.map(([reason]) => reason)).toContain("invalid");
  });

  it("whose stream is missing leaves the message where it is, and the report says so", async () => {
    const handled: number[] = [];
    await start(({ data }) => handled.push(data.n));
    await system.jsm.streams.delete("SORTIE_KEYS");
    await system.publish("payments.due", { order: "a", n: 1 });
    const { consumers } = await system.invoke();
    expect(consumers).toMatchObject([{ returned: 1, error: expect.stringMatching(/SORTIE_KEYS.*npx sortie apply/) }]);
    expect(handled).toEqual([]);
    expect((await system.jsm.consumers.info("PAYMENTS", "charging")).num_ack_pending).toBe(1);
  });
});

describe("a schema that never answers", () => {
  it("does not keep an invocation beyond its time, where a key is asked for", async () => {
    const slow = defineStream("SLOW", {
      subjects: {
        slow: { "~standard": { version: 1, vendor: "test", validate: () => new Promise<never>(() => {}) } } as const,
      },
    });
    const worker = defineConsumer(slow, "worker", { deadLetter: "dead.slow", idempotency: { ttl: "1h" } });
    const app = createApp({ streams: [slow, { ...dead, duplicateWindowMs: 120_000 }] }).on(worker, () => {});
    system = await startSystem(app);
    await system.publish("slow", 1);
    expect((await system.invoke({ budgetMs: 1_500 })).consumers).toMatchObject([
      { acked: 0, unconfirmed: 0, retried: 1 },
    ]);
  });
});

describe("a definition", () => {
  it.each([
    [{ ttl: "10s" } as const, "expected idempotency.ttl to be longer than ackWait (30000 ms)"],
    [{ ttl: "1h", key: "id" as never } as const, "expected idempotency.key to be a function, got string"],
  ])("that makes no sense is refused: %o", (idempotency, error) => {
    expect(() => defineConsumer(payments, "charging", { deadLetter: "dead.payments", idempotency })).toThrow(error);
  });
});
