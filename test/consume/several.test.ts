import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed, RetryAfterError } from "../../src/index.ts";
import { crashPoints } from "../../src/nats/within.ts";
import { type System, startSystem } from "../support/system.ts";

const Job = z.object({ n: z.number() });
const stream = defineStream("WORK", {
  subjects: { "work.one": Job, "work.two": Job, "work.three": Job },
  retention: "workqueue",
});
const dead = defineStream("DEAD", { captures: ["dead.>"] });

let system: System;
afterEach(() => system[Symbol.asyncDispose]());
afterEach(() => delete crashPoints.reached);

interface Side {
  readonly count: number;
  readonly takesMs: number;
  readonly options?: { readonly priority: number };
}

/** Two consumers in one invocation, and whose handlers ended in which order. */
async function sideBySide(one: Side, two: Side, concurrency?: number) {
  const started: string[] = [];
  const ended: string[] = [];
  let running = 0;
  let most = 0;
  const sides = { one, two };
  const consumerOf = (name: "one" | "two") =>
    defineConsumer(stream, name, { ...sides[name].options, filter: `work.${name}`, deadLetter: "dead.work" });
  const handlerOf = (name: "one" | "two") => async () => {
    started.push(name);
    running += 1;
    most = Math.max(most, running);
    await new Promise((resolve) => setTimeout(resolve, sides[name].takesMs));
    running -= 1;
    ended.push(name);
  };
  const app = createApp({ streams: [stream, dead] })
    .on(consumerOf("one"), handlerOf("one"))
    .on(consumerOf("two"), handlerOf("two"));
  system = await startSystem(app);
  for (const name of ["one", "two"] as const)
    for (let n = 0; n < sides[name].count; n++) await system.publish(`work.${name}`, { n });
  const report = await system.invoke(concurrency === undefined ? {} : { concurrency });
  return { started, ended, most, report };
}

describe("several consumers in one invocation", () => {
  it("do not wait for a slow one", async () => {
    const { ended, report } = await sideBySide({ count: 32, takesMs: 300 }, { count: 100, takesMs: 2 });
    expect(report.consumers).toMatchObject([{ acked: 32 }, { acked: 100 }]);
    expect(ended.slice(0, 100).filter((name) => name === "two").length).toBeGreaterThan(80);
  });

  it("share the places that the invocation has fairly", async () => {
    const { started, most } = await sideBySide({ count: 40, takesMs: 20 }, { count: 40, takesMs: 20 }, 4);
    expect(most).toBe(4);
    const half = started.slice(0, 40).filter((name) => name === "one").length;
    expect(half).toBeGreaterThanOrEqual(16);
    expect(half).toBeLessThanOrEqual(24);
  });

  it("give the first place that becomes free to the one that has fewer of them, where one is slow", async () => {
    const { started, most } = await sideBySide({ count: 12, takesMs: 300 }, { count: 40, takesMs: 4 }, 4);
    expect(most).toBe(4);
    expect(started.slice(0, 6)).toContain("two"); // the slow one could have filled all places three times over
  });

  it("start what has the higher priority first", async () => {
    const urgent = { count: 40, takesMs: 5, options: { priority: 1 } };
    const { started, report } = await sideBySide({ count: 40, takesMs: 5 }, urgent, 2);
    const last = started.lastIndexOf("two");
    expect(started.slice(0, last).filter((name) => name === "one").length).toBeLessThanOrEqual(20);
    expect(report.consumers).toMatchObject([
      { acked: 40, ended: "drained" },
      { acked: 40, ended: "drained" },
    ]);
  });
});

describe("a consumer whose handlers never end", () => {
  it.each([0, 1])("leaves places to one of priority %i, whosever messages come first", async (priority) => {
    let [fast, slow] = [0, 0];
    const of = (name: "one" | "two", more = {}) =>
      defineConsumer(stream, name, { filter: `work.${name}`, deadLetter: "dead.work", ...more });
    const app = createApp({ streams: [stream, dead] })
      .on(of("two", { priority }), async () => {
        fast += 1;
        await new Promise((resolve) => setTimeout(resolve, 1));
      })
      .on(of("one"), async (_, { signal }) => {
        slow += 1;
        await new Promise<void>((end) => signal.addEventListener("abort", () => end()));
      });
    system = await startSystem(app);
    for (let n = 0; n < 40; n++) for (const name of ["one", "two"]) await system.publish(`work.${name}`, { n });
    const [two, one] = (await system.invoke({ concurrency: 4, budgetMs: 2_500 })).consumers;
    expect([two, one]).toMatchObject([{ acked: 40, ended: "drained" }, { returned: 0 }]);
    expect(fast).toBe(40);
    expect(slow).toBe(4); // when nobody else needs them it has all places
  });

  it("keeps one for those that may come, while the other lingers", async () => {
    const started: string[] = [];
    const of = (name: "one" | "two") =>
      defineConsumer(stream, name, { filter: `work.${name}`, deadLetter: "dead.work" });
    const app = createApp({ streams: [stream, dead] })
      .on(of("one"), async (_, { signal }) => {
        started.push("one");
        await new Promise<void>((end) => signal.addEventListener("abort", () => end()));
      })
      .on(of("two"), () => void started.push("two"));
    system = await startSystem(app);
    for (let n = 0; n < 10; n++) await system.publish("work.one", { n });
    const invoked = system.invoke({ concurrency: 3, budgetMs: 4_000, linger: "until-budget" });
    await expect.poll(() => started).toEqual(["one", "one"]);
    for (let n = 0; n < 5; n++) await system.publish("work.two", { n });
    await expect.poll(() => started.length).toBe(7);
    await invoked;
  });
});

describe("a message that has to run alone", () => {
  it("does not stop the short handlers of others while a slow one runs", async () => {
    const order: string[] = [];
    const of = (name: "one" | "two" | "three") =>
      defineConsumer(stream, name, { filter: `work.${name}`, deadLetter: "dead.work", concurrency: 1 });
    const app = createApp({ streams: [stream, dead] })
      .on(of("one"), async ({ data }) => {
        order.push(`slow ${data.n}`);
        if (data.n === 1) suspect?.nak(); // comes again: its function may have died of it
        await new Promise((resolve) => setTimeout(resolve, 800));
        order.push(`slow ${data.n} ended`);
      })
      .on(of("two"), ({ data }) => void order.push(`short ${data.n}`))
      .on(of("three"), () => void order.push("suspect"));
    system = await startSystem(app);
    await system.publish("work.three", { n: 0 });
    const suspect = await (await system.js.consumers.get("WORK", "three")).next({ expires: 5_000 });
    await system.publish("work.two", { n: 0 });
    for (const n of [0, 1]) await system.publish("work.one", { n });
    crashPoints.reached = (point, phase) => {
      if (point === "waiting for a turn to run alone" && phase === "before") void system.publish("work.two", { n: 1 });
    };
    const { consumers } = await system.invoke({ linger: "until-budget", budgetMs: 3_500 });
    expect(consumers.map(({ acked }) => acked)).toEqual([2, 2, 1]);
    expect(order.slice(-4)).toEqual(["slow 1", "short 1", "slow 1 ended", "suspect"]);
  });
});

describe("a suspect that waits for a handler of which nobody knows how long it takes", () => {
  it("holds up no other consumer for longer than one of its handlers takes", async () => {
    const order: string[] = [];
    const of = (name: "one" | "two" | "three") =>
      defineConsumer(stream, name, { filter: `work.${name}`, deadLetter: "dead.work" });
    const app = createApp({ streams: [stream, dead] })
      .on(of("one"), async () => {
        order.push("slow");
        await new Promise((resolve) => setTimeout(resolve, 1_500));
        order.push("slow ended");
      })
      .on(of("two"), () => void order.push("short"))
      .on(of("three"), () => void order.push("suspect"));
    system = await startSystem(app);
    await system.publish("work.three", { n: 0 });
    const suspect = await (await system.js.consumers.get("WORK", "three")).next({ expires: 5_000 });
    await system.publish("work.one", { n: 0 });
    crashPoints.reached = (point, phase) => {
      if (point !== "waiting for a turn to run alone" || phase !== "before") return;
      for (let n = 0; n < 5; n++) void system.publish("work.two", { n });
    };
    const invoked = system.invoke({ linger: "2s", budgetMs: 10_000 });
    await expect.poll(() => order).toEqual(["slow"]);
    suspect?.nak();
    await invoked;
    expect(order).toEqual(["slow", ...Array(5).fill("short"), "slow ended", "suspect"]);
  });
});

describe("suspects of one consumer", () => {
  it("let others have a turn after each of them, and go first where they have the higher priority", async () => {
    const order: string[] = [];
    const of = (name: "one" | "two" | "three", priority = 0) =>
      defineConsumer(stream, name, { filter: `work.${name}`, deadLetter: "dead.work", concurrency: 2, priority });
    const suspected = (name: string) => async () => {
      order.push(name);
      if (order.length > 1) return;
      for (let n = 0; n < 6; n++) await system.publish("work.two", { n });
      await new Promise((resolve) => setTimeout(resolve, 100)); // they are in hand then
    };
    const app = createApp({ streams: [stream, dead] })
      .on(of("one"), suspected("suspect"))
      .on(of("two"), () => new Promise((resolve) => setTimeout(resolve, order.push("plain"))))
      .on(of("three", 1), suspected("urgent suspect"));
    system = await startSystem(app);
    for (const name of ["one", "three"]) {
      for (let n = 0; n < 4; n++) await system.publish(`work.${name}`, { n });
      const messages = await (await system.js.consumers.get("WORK", name)).fetch({ max_messages: 4 });
      for await (const message of messages) message.nak(); // its function may have died of it
    }
    await system.invoke({ linger: "500ms" });
    const [, ...suspects] = order.filter((name) => name !== "plain"); // the first one comes when nobody else is there
    expect(suspects.lastIndexOf("urgent suspect"), order.join(", ")).toBeLessThan(suspects.indexOf("suspect"));
    expect(suspects).toHaveLength(7);
    expect(order.slice(1, 3), order.join(", ")).toEqual(["plain", "plain"]); // as many as its concurrency
    const before = order.slice(0, order.lastIndexOf("plain")).filter((name) => name !== "plain");
    expect(before.length, order.join(", ")).toBeLessThanOrEqual(4);
  });
});

describe("a suspect that is to be started once more in place", () => {
  it("keeps nobody waiting for that: it is retried", async () => {
    class Later extends Error {}
    const starts: number[] = [];
    const attempts: number[] = [];
    const rules = [{ on: Later, do: { inPlace: 2, delay: "2s" } }] as const;
    const retry = { attempts: 5, backoff: fixed(20), rules };
    const one = defineConsumer(stream, "one", { filter: "work.one", deadLetter: "dead.work", retry });
    const two = defineConsumer(stream, "two", { filter: "work.two", deadLetter: "dead.work", concurrency: 1 });
    const app = createApp({ streams: [stream, dead] })
      .on(one, ({ attempt }) => {
        attempts.push(attempt);
        if (attempt === 1) throw new Later("not yet");
      })
      .on(two, async () => {
        starts.push(Date.now());
        await new Promise((resolve) => setTimeout(resolve, 20));
      });
    system = await startSystem(app);
    await system.publish("work.one", { n: 0 });
    (await (await system.js.consumers.get("WORK", "one")).next({ expires: 5_000 }))?.nak();
    for (let n = 0; n < 50; n++) await system.publish("work.two", { n });
    expect((await system.invoke({ linger: "3s" })).consumers).toMatchObject([{ acked: 1, retried: 1 }, { acked: 50 }]);
    expect(attempts).toEqual([1, 2]);
    const gaps = starts.slice(1).map((at, n) => at - (starts[n] ?? 0));
    expect(Math.max(...gaps)).toBeLessThan(1_500);
  });
});

describe("a suspect that waits for its start under a rate limit", () => {
  it("keeps nobody waiting for that", async () => {
    const starts: number[] = [];
    const rateLimit = { messages: 1, per: "3s" } as const;
    const one = defineConsumer(stream, "one", { filter: "work.one", deadLetter: "dead.work", rateLimit });
    const two = defineConsumer(stream, "two", { filter: "work.two", deadLetter: "dead.work", concurrency: 1 });
    const limited: number[] = [];
    const app = createApp({ streams: [stream, dead] })
      .on(one, () => void limited.push(Date.now()))
      .on(two, async () => {
        starts.push(Date.now());
        await new Promise((resolve) => setTimeout(resolve, 20));
      });
    system = await startSystem(app);
    for (const n of [0, 1]) await system.publish("work.one", { n });
    const messages = await (await system.js.consumers.get("WORK", "one")).fetch({ max_messages: 2 });
    for await (const message of messages) message.nak(); // both are suspects
    for (let n = 0; n < 150; n++) await system.publish("work.two", { n });
    const report = await system.invoke({ linger: "500ms" });
    expect(report.consumers).toMatchObject([{ acked: 2, retried: 0 }, { acked: 150 }]);
    expect(Math.abs((limited[1] ?? 0) - (limited[0] ?? 0))).toBeGreaterThanOrEqual(2_900);
    const between = starts.filter((at) => at > (limited[0] ?? 0) && at < (limited[1] ?? 0));
    expect(between.length).toBeGreaterThan(50); // all, on a machine that has nothing else to do
  });
});

describe("a suspect that is never alone", () => {
  const of = (name: "one" | "two") => defineConsumer(stream, name, { filter: `work.${name}`, deadLetter: "dead.work" });

  async function suspect(name: string, count: number) {
    for (let n = 0; n < count; n++) await system.publish(`work.${name}`, { n });
    const messages = await (await system.js.consumers.get("WORK", name)).fetch({ max_messages: count });
    for await (const message of messages) message.nak();
  }

  it("for another consumer's handler takes all the time, is started beside it", async () => {
    const started: number[] = [];
    const app = createApp({ streams: [stream, dead] })
      .on(of("one"), (_, { signal }) => new Promise<void>((end) => signal.addEventListener("abort", () => end())))
      .on(of("two"), ({ data }) => void started.push(data.n));
    system = await startSystem(app);
    await suspect("two", 1);
    await system.publish("work.one", { n: 1 });
    expect((await system.invoke({ budgetMs: 2_000 })).consumers).toMatchObject([{}, { acked: 1, returned: 0 }]);
    expect(started).toEqual([0]);
  });

  it("for its consumer is busy, has its turn when those have ended that came in after it", async () => {
    let [on, suspects] = [true, 0];
    const app = createApp({ streams: [stream, dead] }).on(of("one"), async ({ data: { n } }) => {
      if (n < 5) suspects += 1;
      await new Promise((resolve) => setTimeout(resolve, 10 + Math.random() ** 2 * 300));
    });
    system = await startSystem(app);
    await suspect("one", 5);
    const feeding = (async () => {
      for (let n = 5; on; n++) {
        await system.publish("work.one", { n });
        await new Promise((resolve) => setTimeout(resolve, 3));
      }
    })();
    await system.invoke({ budgetMs: 6_000, linger: "until-budget" });
    on = false;
    await feeding;
    expect(suspects).toBe(5);
  });
});

describe("a busy backlog", () => {
  it("does not keep a consumer from its parked retries", async () => {
    const handled: number[] = [];
    const worker = defineConsumer(stream, "worker", {
      filter: "work.one",
      deadLetter: "dead.work",
      concurrency: 2,
      maxAckPending: 1_000,
    });
    const app = createApp({ streams: [stream, dead] }).on(worker, async ({ data, attempt }) => {
      if (data.n < 0 && attempt === 1) throw new RetryAfterError("later", "6s");
      handled.push(data.n);
      await new Promise((resolve) => setTimeout(resolve, 10));
    });
    system = await startSystem(app);
    const parked = [-8, -7, -6, -5, -4, -3, -2, -1]; // more than the first pull asks for
    for (const n of parked) await system.publish("work.one", { n });
    expect((await system.invoke()).consumers).toMatchObject([{ retried: parked.length }]);
    await Promise.all(Array.from({ length: 500 }, (_, n) => system.publish("work.one", { n })));
    const now = () => Date.now() + 10_000; // the retry is due
    const { consumers } = await system.invoke({ now, deadline: now() + 1_500 });
    expect(consumers).toMatchObject([{ ended: "budget", unconfirmed: 0, more: true }]);
    expect(handled.filter((n) => n < 0).toSorted((a, b) => a - b)).toEqual(parked);
  });
});
