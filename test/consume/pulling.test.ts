import { AckPolicy, type ConsumerConfig } from "@nats-io/jetstream";
import { headers } from "@nats-io/nats-core";
import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { type ConsumerOptions, createApp, defineConsumer, defineStream, type Handler, list } from "../../src/index.ts";
import { connect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import { altered } from "../support/connections.ts";
import { asFunction, functionDenied } from "../support/logins.ts";
import { startProxy } from "../support/peers.ts";
import { type System, type SystemOptions, startSystem } from "../support/system.ts";

const Job = z.object({ n: z.number(), pad: z.string().optional() });
const jobs = defineStream("JOBS", { subjects: { "jobs.a": Job }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

function start(
  options: Partial<ConsumerOptions<"jobs.a">>,
  handler: Handler<typeof jobs.schemas, "jobs.a", typeof jobs> = () => {},
  server: SystemOptions = {},
) {
  const worker = defineConsumer(jobs, "worker", { filter: "jobs.a", deadLetter: "dead.jobs", ...options });
  return startSystem(createApp({ streams: [jobs, dead] }).on(worker, handler), server);
}

async function publish(count: number, pad = "") {
  await Promise.all(Array.from({ length: count }, (_, n) => system.publish("jobs.a", { n, pad })));
}

describe("a consumer with a limit that someone else has set", () => {
  it.each<[string, Partial<ConsumerConfig>]>([
    ["the messages of a pull", { max_batch: 3 }],
    ["the time of a pull", { max_expires: 1_000_000 }],
    ["the bytes of a pull", { max_bytes: 2_000 }],
    ["what may be outstanding", { max_ack_pending: 2 }],
  ])("for %s is pulled from within it", async (_, limit) => {
    system = await start({ concurrency: 10 });
    await system.jsm.consumers.update("JOBS", "worker", limit);
    await publish(30, "x".repeat(100));
    let acked = 0;
    await expect
      .poll(async () => {
        const { consumers } = await system.invoke();
        expect(consumers[0]).toMatchObject({ ended: "drained", unconfirmed: 0 });
        expect(consumers[0]).not.toHaveProperty("error");
        acked += consumers[0]?.acked ?? 0;
        return acked;
      })
      .toBe(30);
  });

  it("for those that wait is waited for, in turn", async () => {
    system = await start({});
    const config: Partial<ConsumerConfig> = { max_waiting: 1, ack_policy: AckPolicy.Explicit };
    await system.jsm.consumers.delete("JOBS", "worker");
    await system.jsm.consumers.add("JOBS", { durable_name: "worker", filter_subject: "jobs.a", ...config });
    const other = (await system.js.consumers.get("JOBS", "worker")).next({ expires: 1_500 }); // has the only place
    await expect.poll(async () => (await system.jsm.consumers.info("JOBS", "worker")).num_waiting).toBe(1);
    const invocation = system.invoke({ linger: "4s" });
    await other;
    await publish(1);
    expect((await invocation).consumers[0]).toMatchObject({ acked: 1, ended: "drained" });
  });
});

describe("the bytes in hand", () => {
  it("are no more than the consumer says, but for one message that is larger", async () => {
    let [inHand, most] = [0, 0];
    system = await start({ maxBytes: 10_000, concurrency: 50 }, async ({ data }) => {
      inHand += data.pad?.length ?? 0;
      most = Math.max(most, inHand);
      await new Promise((resolve) => setTimeout(resolve, 20));
      inHand -= data.pad?.length ?? 0;
    });
    await publish(30, "x".repeat(3_000));
    await publish(2, "x".repeat(50_000));
    expect((await system.invoke()).consumers[0]).toMatchObject({ acked: 32, ended: "drained" });
    expect(most).toBeLessThanOrEqual(50_000 + 10_000);
    expect(most).toBeGreaterThan(3_000);
  });
});

describe("the bytes of a pull", () => {
  it("may be used up to the last one, of which the server says nothing", async () => {
    const payload = JSON.stringify({ n: 1, pad: "x".repeat(50) });
    const nanoseconds = "1".repeat(19);
    const one = `jobs.a$JS.ACK.JOBS.worker.1.1.1.${nanoseconds}.1${payload}`.length; // as the server counts it
    system = await start({ maxBytes: 4 * one }); // each pull asks for half of that
    await Promise.all(Array.from({ length: 9 }, () => system.publish("jobs.a", JSON.parse(payload))));
    const { consumers } = await system.invoke({ budgetMs: 5_000 });
    expect(consumers).toMatchObject([{ acked: 9, ended: "drained" }]);
  });
});

describe("what came while handlers ran", () => {
  it("is handled in the same invocation", async () => {
    const handled: number[] = [];
    system = await start({ concurrency: 2 }, async ({ data }) => {
      handled.push(data.n);
      if (data.n === 0) await system.publish("jobs.a", { n: 100 });
      await new Promise((resolve) => setTimeout(resolve, 50));
    });
    await publish(1);
    expect((await system.invoke()).consumers[0]).toMatchObject({ acked: 2, ended: "drained" });
    expect(handled).toEqual([0, 100]);
  });
});

describe("a slow link", () => {
  it("costs time and nothing else", async () => {
    system = await start({ concurrency: 100 });
    await publish(200);
    await using proxy = await startProxy(system.server.url, 150);
    const connectSlowly = (ms: number) => connect({ url: proxy.url }, ms);
    const { consumers } = await system.invoke({ connect: connectSlowly, budgetMs: 12_000 });
    expect(consumers[0]).toMatchObject({ acked: 200, returned: 0, unconfirmed: 0, ended: "drained" });
  });
});

describe("a link that stands still for a moment", () => {
  it.each(["drain", "until-budget"] as const)("ends nothing, with %s", async (linger) => {
    let handled = 0;
    let standStill = () => {};
    system = await start({ concurrency: 4 }, async () => {
      if (++handled === 40) standStill();
      await new Promise((resolve) => setTimeout(resolve, 10));
    });
    await publish(200);
    await using proxy = await startProxy(system.server.url);
    standStill = () => proxy.standStill(350);
    const { consumers } = await system.invoke({
      connect: (ms) => connect({ url: proxy.url }, ms),
      linger,
      budgetMs: linger === "drain" ? 10_000 : 6_000,
    });
    const ended = linger === "drain" ? "drained" : "budget";
    expect(consumers[0]).toMatchObject({ acked: 200, returned: 0, unconfirmed: 0, leaseLost: 0, ended });
    expect(consumers[0]).not.toHaveProperty("error");
  });
});

describe("messages that cannot be finished", () => {
  it("are not pulled: no handler is cut off for them", async () => {
    let started = 0;
    system = await start({ concurrency: 20 }, (_, { signal }) => {
      started += 1;
      return new Promise((resolve, reject) => {
        setTimeout(resolve, 2_000);
        signal.addEventListener("abort", () => reject(signal.reason));
      });
    });
    await publish(100);
    const { consumers } = await system.invoke({ budgetMs: 5_000 });
    expect(consumers[0]).toMatchObject({ pulled: 20, acked: 20, retried: 0, ended: "budget", more: true });
    expect(started).toBe(20);
  });
});

describe("large messages that the server has given up on", () => {
  it("come through, no more of them at a time than may be in hand, and none loses its lease", async () => {
    let handled = 0;
    system = await startSystem(createApp({ streams: [jobs, dead] }));
    const config: Partial<ConsumerConfig> = { ack_policy: AckPolicy.Explicit, max_deliver: 1, ack_wait: 5_000_000_000 };
    await system.jsm.consumers.add("JOBS", { durable_name: "worker", filter_subject: "jobs.a", ...config });
    const options = { managed: false, ackWait: "5s", concurrency: 64, maxBytes: 4 * 1_024 * 1_024 } as const;
    const worker = defineConsumer(jobs, "worker", { filter: "jobs.a", deadLetter: "dead.jobs", ...options });
    const app = createApp({ streams: [jobs, dead] }).on(worker, () => {
      handled += 1;
    });
    const connection = await system.connect();
    await apply(connection, { streams: app.streams, consumers: [worker] });
    await connection.close();
    await publish(24, "x".repeat(500_000));
    await system.jsm.consumers.update("JOBS", "worker", { ack_wait: 1_000_000_000 }); // to be given up on soon
    const consumer = await system.js.consumers.get("JOBS", "worker");
    for (let given = 0; given < 24; )
      for await (const _ of await consumer.fetch({ max_messages: 12, expires: 1_000 })) given += 1;
    const advisories = async () => (await system.jsm.streams.info("SORTIE_EXHAUSTED")).state.messages;
    await expect.poll(advisories).toBe(24);
    let [reading, mostAtOnce] = [0, 0];
    const { consumers } = await system.invoke({
      bindings: app.bindings,
      budgetMs: 25_000,
      async connect() {
        const connection = await system.connect();
        const request: typeof connection.request = (subject, ...rest) => {
          const answer = connection.request(subject, ...rest);
          if (subject !== "$JS.API.STREAM.MSG.GET.JOBS") return answer;
          mostAtOnce = Math.max(mostAtOnce, ++reading);
          return answer.finally(() => {
            reading -= 1;
          });
        };
        return altered(connection, { request });
      },
    });
    expect(consumers[0]).toMatchObject({ acked: 24, leaseLost: 0, unconfirmed: 0, ended: "drained" });
    expect(handled).toBe(24);
    expect(mostAtOnce * 3 * 500_000).toBeLessThanOrEqual(options.maxBytes); // read as text, three times their bytes
    expect((await system.jsm.streams.info("JOBS")).state.messages).toBe(0);
  });
});

describe("what waits for a handler", () => {
  it("keeps its lease as well", async () => {
    let handled = 0;
    system = await start({ ackWait: "1s", concurrency: 1, batch: 10 }, async () => {
      if (handled++ >= 3) await new Promise((resolve) => setTimeout(resolve, 700)); // the others have been pulled by then
    });
    await publish(8);
    const { consumers } = await system.invoke();
    expect(consumers[0]).toMatchObject({ pulled: 8, acked: 8, leaseLost: 0 });
    expect((await system.jsm.consumers.info("JOBS", "worker")).delivered.consumer_seq).toBe(8);
  });
});

describe("an invocation over a connection that is kept", () => {
  it("leaves nothing on it: no pull, no subscription, and no timer", async () => {
    system = await start({ concurrency: 10, maxAckPending: 1_000 }, async ({ data }) => {
      await new Promise((resolve) => setTimeout(resolve, 5));
      if (data.n === 7) throw new Error("once");
    });
    await publish(50);
    const connection = await system.connect();
    const subscriptions = new Set<object>();
    const kept = altered(connection, {
      subscribe(subject, options) {
        const subscription = connection.subscribe(subject, options);
        subscriptions.add(subscription);
        void subscription.closed.then(() => subscriptions.delete(subscription));
        return subscription;
      },
    });
    const invokeOnce = () =>
      system.invoke({ connect: async () => kept, disconnect() {}, linger: "until-budget", budgetMs: 1_500 });
    await invokeOnce(); // what the client itself keeps is there now
    const timers = openTimers();
    try {
      const { consumers } = await invokeOnce();
      expect(consumers[0]).toMatchObject({ ended: "budget" });
      expect(timers.open).toEqual([]);
    } finally {
      timers.restore();
    }
    await connection.request("$JS.API.INFO"); // the server has heard of it
    expect([...subscriptions]).toEqual([]);
    expect((await system.jsm.consumers.info("JOBS", "worker")).num_waiting).toBe(0);
    await connection.close();
  });
});

/** The timers that were set from now on and have neither rung nor been cleared. */
function openTimers() {
  const { setTimeout: after, clearTimeout: clear, setInterval: every, clearInterval: clearEvery } = globalThis;
  const open = new Map<unknown, string>();
  const noted = (timer: unknown) => {
    open.set(timer, new Error("set here").stack ?? "");
    return timer;
  };
  const forgetting = (how: (timer: never) => void) => (timer: never) => {
    open.delete(timer);
    how(timer);
  };
  Object.assign(globalThis, {
    setTimeout: (ring: () => void, ...rest: []) => {
      const timer: unknown = after(
        () => {
          open.delete(timer);
          ring();
        },
        ...rest,
      );
      return noted(timer);
    },
    setInterval: (...all: Parameters<typeof every>) => noted(every(...all)),
    clearTimeout: forgetting(clear),
    clearInterval: forgetting(clearEvery),
  });
  return {
    get open() {
      return [...open.values()];
    },
    restore() {
      Object.assign(globalThis, {
        setTimeout: after,
        clearTimeout: clear,
        setInterval: every,
        clearInterval: clearEvery,
      });
    },
  };
}

describe("a consumer that is confirmed one by one", () => {
  it("has each acknowledgement answered by the server", async () => {
    system = await start({ confirm: "each", concurrency: 20 });
    await publish(50);
    let requests = 0;
    const { consumers } = await system.invoke({
      async connect() {
        const connection = await system.connect();
        const request = connection.request.bind(connection);
        connection.request = (subject, ...rest) => {
          if (subject.startsWith("$JS.ACK.")) requests += 1;
          return request(subject, ...rest);
        };
        return connection;
      },
    });
    expect(consumers[0]).toMatchObject({ acked: 50, unconfirmed: 0 });
    expect(requests).toBe(50);
  });
});

describe("a lease that was lost", () => {
  it("is reported, and what was done is acknowledged all the same", async () => {
    system = await start({ ackWait: "1s", concurrency: 2 }, () => {
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1_500); // as if the function was frozen
    });
    await publish(1);
    const { consumers } = await system.invoke();
    expect(consumers[0]).toMatchObject({ acked: 1, leaseLost: 1, unconfirmed: 0 });
    expect(system.events).toMatchObject([{ event: "lease-lost", sequence: 1 }]);
  });

  it("to another invocation counts both starts, and leaves the message to it", async () => {
    const attempts: number[] = [];
    const thawed = Promise.withResolvers<void>();
    system = await start({ ackWait: "1s" }, async ({ attempt }) => {
      attempts.push(attempt);
      if (attempts.length > 1) return;
      await thawed.promise;
      throw new Error("too late");
    });
    await publish(1);
    // its words to the server get lost, so that the server hands the message to another one
    const first = system.invoke({
      async connect() {
        const connection = await system.connect();
        const publishing = connection.publish.bind(connection);
        connection.publish = (subject, ...rest) => {
          if (rest[0] !== "+WPI") publishing(subject, ...rest);
        };
        return connection;
      },
    });
    await expect.poll(() => attempts).toEqual([1]);
    await expect.poll(async () => (await system.invoke()).consumers[0]?.acked, { timeout: 10_000 }).toBe(1);
    thawed.resolve();
    await first;
    await system.settle();
    expect(attempts).toEqual([1, 1]);
    expect((await system.jsm.streams.info("DEAD")).state.messages).toBe(0);
    expect((await system.jsm.streams.info("JOBS")).state.messages).toBe(0);
  });
});

describe("the bytes in hand", () => {
  it("are those of headers as well", async () => {
    let [inHand, most] = [0, 0];
    system = await start({ maxBytes: 1_000_000, concurrency: 256 }, async () => {
      inHand += 1;
      most = Math.max(most, inHand);
      await new Promise((resolve) => setTimeout(resolve, 50));
      inHand -= 1;
    });
    const hdrs = headers();
    hdrs.set("X-Large", "x".repeat(60_000));
    for (let n = 0; n < 60; n++) await system.js.publish("jobs.a", JSON.stringify({ n }), { headers: hdrs });
    expect((await system.invoke()).consumers).toMatchObject([{ acked: 60 }]);
    expect(most).toBeLessThanOrEqual(17);
  });
});

describe("acknowledgements of a message and of a parked copy, which go to two consumers", () => {
  it("are confirmed by the answer of their own", async () => {
    const ends: Record<number, number> = { 2: 250, 3: 280, 4: 2_000 }; // after the first was started
    let began: number | undefined;
    const options = { maxAckPending: 10, ackWait: "2s", retry: { attempts: 3, backoff: list(["5s", "1s"]) } } as const;
    system = await start(options, async ({ data: { n }, attempt }) => {
      if (n === 1 && attempt === 1) throw new Error("it is parked");
      began ??= Date.now() + 500;
      const ms = Math.max(0, began + (ends[n] ?? 0) - Date.now());
      await new Promise((resolve) => setTimeout(resolve, ms));
      // when its own acknowledgement has come to the server, and before the next one's does
      if (n === 2) setTimeout(() => void system.jsm.consumers.delete("JOBS", "worker"), 210);
    });
    await system.publish("jobs.a", { n: 1 });
    await system.invoke();
    for (const n of [2, 3, 4]) await system.publish("jobs.a", { n });
    await using proxy = await startProxy(system.server.url, 150);
    const connectTo = (ms: number) => connect({ url: proxy.url }, ms);
    await new Promise((resolve) => setTimeout(resolve, 5_100));
    const { consumers } = await system.invoke({ connect: connectTo });
    const left = (await system.jsm.streams.info("JOBS")).state.messages;
    expect(consumers[0]?.acked).toBe(4 - left);
  });
});

describe("a consumer of which the server gives nothing", () => {
  it.each([-1, 100])("as it is paused is told so, with its lag; limited to %s", async (maxAckPending) => {
    system = await start({ maxAckPending });
    await publish(5);
    await system.jsm.consumers.pause("JOBS", "worker", new Date(Date.now() + 60_000));
    const { consumers } = await system.invoke();
    expect(consumers).toMatchObject([{ pulled: 0, ended: "held", lag: 5, more: false }]);
    expect(consumers[0]).not.toHaveProperty("error");
    await system.jsm.consumers.resume("JOBS", "worker");
    expect((await system.invoke()).consumers).toMatchObject([{ acked: 5, ended: "drained", lag: 0 }]);
  });

  it("as others have as much in hand as may be is told so, with its lag", async () => {
    system = await start({ maxAckPending: 2 });
    await publish(5);
    const taken = await (await system.js.consumers.get("JOBS", "worker")).fetch({ max_messages: 2 });
    for await (const message of taken) message.working();
    expect((await system.invoke()).consumers).toMatchObject([{ pulled: 0, ended: "held", lag: 5, more: false }]);
  });
});

describe("a login that may not pull", () => {
  it("is told in the report, each time, and not taken for one that was refused", async () => {
    const config = functionDenied("publish", "$JS.API.CONSUMER.MSG.NEXT.JOBS.worker");
    system = await start({}, () => {}, { config });
    await publish(1);
    const invoked = Array.from({ length: 6 }, () =>
      system.invoke({ connect: asFunction(system.server), budgetMs: 1_000 }),
    );
    const failed = { ended: "failed", error: expect.stringMatching(/may not pull: allow it to publish to \$JS\.API/) };
    for (const { consumers } of await Promise.all(invoked)) expect(consumers).toMatchObject([failed]);
  });
});
