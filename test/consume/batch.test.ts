import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import {
  type BatchContext,
  type BatchResult,
  type ConsumerOptions,
  createApp,
  defineConsumer,
  defineStream,
  fixed,
  type Message,
  NonRetriableError,
  RetryAfterError,
  type Schema,
} from "../../src/index.ts";
import { altered, inPieces, losing } from "../support/connections.ts";
import { type System, startSystem } from "../support/system.ts";

const Job = z.object({ n: z.number() });
const jobs = defineStream("JOBS", { subjects: { "jobs.a": Job, "results.a": Job }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const retry = { attempts: 3, backoff: fixed(20) };

type One = Message<"jobs.a", { n: number }>;
type Context = BatchContext<One, typeof jobs>;

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

/** What a system's handler was started with: of each start the numbers of its messages. */
let starts: number[][];

/** A system with one batch in hand at a time, whose handler is `handler`. */
async function start(
  handler: (numbers: number[], messages: readonly One[], context: Context) => unknown,
  { size = 8, ...options }: Partial<ConsumerOptions<"jobs.a", One>> & { size?: number } = {},
) {
  const worker = defineConsumer(jobs, "worker", {
    filter: "jobs.a",
    deadLetter: "dead.jobs",
    concurrency: 1,
    retry,
    ...options,
  });
  starts = [];
  const app = createApp({ streams: [jobs, dead] }).handleBatch(
    worker,
    (messages, context) => {
      const numbers = messages.map(({ data }) => data.n);
      starts.push(numbers);
      return handler(numbers, messages, context) as BatchResult | undefined;
    },
    { size },
  );
  system = await startSystem(app);
}

const upTo = (count: number) => Array.from({ length: count }, (_, index) => index + 1);

async function publish(numbers: number[]) {
  for (const n of numbers) await system.publish("jobs.a", { n });
}

/** An invocation to which so many messages come in one piece. */
async function invoke(messages: number, options: Parameters<System["invoke"]>[0] = {}) {
  const connect = async () => inPieces(await system.connect(), messages);
  const { consumers } = await system.invoke({ connect, ...options });
  return consumers[0]!;
}

async function deadLetters() {
  const { last_seq } = (await system.jsm.streams.info("DEAD")).state;
  const letters = await Promise.all(upTo(last_seq).map((seq) => system.jsm.streams.getMessage("DEAD", { seq })));
  return letters.map((letter) => ({
    n: letter?.json<{ n: number }>().n,
    reason: letter?.header.get("Sortie-Reason"),
    error: letter?.header.get("Sortie-Error"),
    attempts: letter?.header.get("Sortie-Attempts"),
  }));
}

async function stored() {
  return (await system.jsm.streams.info("JOBS", { subjects_filter: ">" })).state.subjects ?? {};
}

describe("a batch", () => {
  it("is what came in one piece, up to its size, and settled message by message", async () => {
    await start(() => undefined);
    await publish(upTo(20));
    expect(await invoke(8)).toMatchObject({ pulled: 20, acked: 20, ended: "drained" });
    expect(starts.flat()).toEqual(upTo(20));
    expect(starts[0]).toEqual(upTo(8));
    expect(await stored()).toEqual({});
  });

  it("is what waits when a place is free, and nothing is waited for", async () => {
    const first = Promise.withResolvers<void>();
    const others = Promise.withResolvers<void>();
    await start(async ([n]) => {
      if (n !== 1) return;
      first.resolve();
      await others.promise;
    });
    await publish([1]);
    const connect = async () => inPieces(await system.connect(), 1, 5);
    const invocation = system.invoke({ connect, linger: "1s" });
    await first.promise;
    await publish(upTo(6).slice(1));
    await expect.poll(async () => (await system.jsm.consumers.info("JOBS", "worker")).num_ack_pending).toBe(6);
    others.resolve();
    await invocation;
    expect(starts).toEqual([[1], [2, 3, 4, 5, 6]]);
  });

  it("has a place among as many as `concurrency` says, and ten messages unless told otherwise", async () => {
    let [running, most] = [0, 0];
    const sizes: number[] = [];
    const worker = defineConsumer(jobs, "worker", { filter: "jobs.a", deadLetter: "dead.jobs", concurrency: 2 });
    const gate = Promise.withResolvers<void>();
    const app = createApp({ streams: [jobs, dead] }).handleBatch(worker, async (messages) => {
      sizes.push(messages.length);
      most = Math.max(most, ++running);
      if (running === 2) gate.resolve();
      await gate.promise;
      running -= 1;
    });
    system = await startSystem(app);
    await publish(upTo(60));
    expect((await system.invoke()).consumers[0]).toMatchObject({ acked: 60 });
    expect(most).toBe(2);
    expect(Math.max(...sizes)).toBe(10);
  });

  it("leaves out what cannot be read, which goes to the dead letters", async () => {
    await start(() => undefined);
    await publish([1]);
    for (const payload of ["no job", { n: "2" }]) await system.publish("jobs.a", payload);
    await publish([3]);
    expect(await invoke(4)).toMatchObject({ pulled: 4, acked: 2, deadLettered: 2 });
    expect(starts.flat()).toEqual([1, 3]);
    expect((await deadLetters()).map(({ reason }) => reason)).toEqual(["invalid", "invalid"]);
  });

  it("claims a key for each of its messages", async () => {
    const key = ({ data }: One) => `${data.n % 4}`;
    await start(() => undefined, { idempotency: { ttl: "1h", key } });
    await publish(upTo(12));
    await system.settle();
    expect(starts.flat().toSorted()).toEqual([1, 2, 3, 4]);
    expect(await stored()).toEqual({});
  });
});

describe("a message that is reported as failed", () => {
  it("is retried by itself, its attempts counted, and the others are acknowledged", async () => {
    const attempts: number[] = [];
    await start((_, messages) => {
      const broken = messages.find(({ data }) => data.n === 2);
      if (broken) attempts.push(broken.attempt);
      return { failed: broken ? [{ sequence: broken.sequence, error: new Error("not this one") }] : [] };
    });
    await publish(upTo(5));
    expect(await invoke(5)).toMatchObject({ pulled: 5, acked: 4, retried: 1 });
    await system.settle();
    expect(attempts).toEqual([1, 2, 3]);
    const dropped = { n: 2, reason: "attempts-exhausted", error: "Error: not this one", attempts: "3" };
    expect(await deadLetters()).toEqual([dropped]);
  });

  it("is decided by the policy as if a handler of its own had thrown, in place together with others", async () => {
    const errors: Record<number, unknown> = {
      1: new NonRetriableError("never"),
      2: new RangeError("old news"),
      3: new TypeError("once more"),
      4: new TypeError("once more"),
      5: new RetryAfterError("later", "100ms"),
    };
    const seen: string[] = [];
    await start(
      (_, messages) => {
        seen.push(messages.map(({ data, attempt }) => `${data.n}/${attempt}`).join(" "));
        const failed = messages.filter(({ data, attempt }) => data.n < 6 && attempt === 1);
        return { failed: failed.map(({ sequence, data }) => ({ sequence, error: errors[data.n] })) };
      },
      {
        retry: {
          ...retry,
          rules: [
            { on: RangeError, do: "discard" },
            { on: TypeError, do: { inPlace: 1, delay: "10ms" } },
          ],
        },
      },
    );
    await publish(upTo(6));
    const report = await invoke(6);
    expect(report).toMatchObject({ acked: 4, discarded: 1, deadLettered: 1, retried: 1 });
    await system.settle();
    expect(seen).toEqual(["1/1 2/1 3/1 4/1 5/1 6/1", "3/2 4/2", "5/2"]);
    expect(system.events).toContainEqual(expect.objectContaining({ event: "retried", sequence: 5, delayMs: 100 }));
    expect((await deadLetters()).map(({ n, reason }) => [n, reason])).toEqual([[1, "non-retriable"]]);
  });

  it("has nothing published, and what is published for the others is stored once", async () => {
    let failing = true;
    await start(async (_, messages, { of }) => {
      for (const message of messages) void of(message).publish("results.a", message.data);
      if (!failing) return;
      failing = false;
      return { failed: messages.slice(0, 2).map(({ sequence }) => ({ sequence, error: "not yet" })) };
    });
    await publish(upTo(5));
    await invoke(5);
    expect(await stored()).toEqual({ "jobs.a": 2, "results.a": 3 });
    await system.settle();
    expect(await stored()).toEqual({ "results.a": 5 });
  });
});

describe("a handler that throws", () => {
  it("is started for halves, down to the message that breaks it, which alone is charged", async () => {
    const attempts = new Map<number, number[]>();
    await start((numbers, messages) => {
      for (const { data, attempt } of messages) attempts.set(data.n, [...(attempts.get(data.n) ?? []), attempt]);
      if (numbers.includes(3)) throw new Error("three");
    });
    await publish(upTo(8));
    const report = await invoke(8);
    expect(report).toMatchObject({ pulled: 8, acked: 7, retried: 1 });
    expect(starts).toEqual([upTo(8), [1, 2, 3, 4], [1, 2], [3, 4], [3], [4], [5, 6, 7, 8]]);
    await system.settle();
    expect(await deadLetters()).toMatchObject([{ n: 3, reason: "attempts-exhausted", attempts: "3" }]);
    expect([...attempts.get(3)!].slice(-3)).toEqual([1, 2, 3]);
    for (const n of [1, 2, 4, 5, 6, 7, 8]) expect(new Set(attempts.get(n))).toEqual(new Set([1]));
  });

  it("every time is started 2n - 1 times, and each message is charged once", async () => {
    const later = { attempts: 3, backoff: fixed("1m") }; // or it may come again in the same invocation
    await start(
      () => {
        throw new Error("the database is away");
      },
      { retry: later },
    );
    await publish(upTo(7));
    expect(await invoke(7)).toMatchObject({ pulled: 7, retried: 7 });
    expect(starts).toHaveLength(13);
    expect(system.events.map(({ attempt }) => attempt)).toEqual(Array(7).fill(1));
  });

  it("for good sends no other message to the dead letters than the one it throws for alone", async () => {
    await start((numbers) => {
      if (numbers.includes(2)) throw new NonRetriableError("two");
    });
    await publish(upTo(4));
    expect(await invoke(4)).toMatchObject({ acked: 3, deadLettered: 1, retried: 0 });
    expect(await deadLetters()).toEqual([
      { n: 2, reason: "non-retriable", error: "NonRetriableError: two", attempts: "1" },
    ]);
  });

  it("and says when to come again is left alone until then, which is an attempt for each", async () => {
    const at: number[] = [];
    await start(() => {
      if (at.push(Date.now()) === 1) throw new RetryAfterError("busy", "300ms");
    });
    await publish(upTo(4));
    expect(await invoke(4)).toMatchObject({ retried: 4 });
    expect(starts).toEqual([upTo(4)]);
    expect(system.events).toMatchObject(Array(4).fill({ event: "retried", attempt: 1, delayMs: 300 }));
    await system.settle();
    expect(at[1]! - at[0]!).toBeGreaterThanOrEqual(300);
    expect(starts.slice(1).flat().toSorted()).toEqual(upTo(4));
  });

  it("so, where it would be their last attempt, has each come by itself then", async () => {
    await start(
      (numbers) => {
        if (numbers.includes(1)) throw new RetryAfterError("busy", "50ms");
      },
      { retry: { ...retry, attempts: 1 } },
    );
    await publish(upTo(4));
    expect(await invoke(4)).toMatchObject({ retried: 4, deadLettered: 0 });
    expect(system.events).toMatchObject(Array(4).fill({ event: "retried", attempt: 0, delayMs: 50 }));
    await system.settle();
    expect(starts.slice(1).toSorted()).toEqual([[1], [2], [3], [4]]);
    expect(await deadLetters()).toMatchObject([{ n: 1, reason: "attempts-exhausted", attempts: "1" }]);
  });

  it("publishes nothing, and what its halves publish is stored once", async () => {
    await start(async (numbers, messages, { of }) => {
      await Promise.all(messages.map((message) => of(message).publish("results.a", message.data)));
      if (numbers.length > 1) throw new Error("too many");
    });
    await publish(upTo(6));
    await system.settle();
    expect(await stored()).toEqual({ "results.a": 6 });
  });
});

describe("what a batch publishes", () => {
  it("has ids that do not depend on the batch: stored once where its messages come again in others", async () => {
    await start(
      async (_, messages, { of }) => {
        for (const message of messages.toReversed()) await of(message).publish("results.a", message.data);
      },
      { ackWait: "1s", size: 4 },
    );
    await publish(upTo(6));
    const connect = async () => losing(await system.connect(), (subject) => subject.startsWith("$JS.ACK"));
    expect((await system.invoke({ connect, budgetMs: 2_000 })).consumers[0]).toMatchObject({ acked: 0 });
    expect((await stored())["results.a"]).toBeGreaterThan(0);
    await expect.poll(async () => (await system.invoke()) && stored()).toEqual({ "results.a": 6 });
    // of those it was never heard of what became: they come again one by one
    expect(starts.at(-1)).toHaveLength(1);
  });

  it("fails the message that it is refused for, and no other", async () => {
    await start((_, messages, { of }) => {
      for (const message of messages) {
        const { n } = message.data;
        void of(message).publish("results.a", { n: (n === 2 ? "two" : n) as number });
      }
    });
    await publish(upTo(4));
    expect(await invoke(4)).toMatchObject({ acked: 3, retried: 1 });
    expect(starts).toEqual([upTo(4)]);
    expect(system.events).toMatchObject([{ sequence: 2, error: expect.stringContaining('schema of "results.a"') }]);
  });

  it("is refused once the handler has ended, and for what is no message of it", async () => {
    const late = Promise.withResolvers<unknown>();
    await start((_, messages, { of }) => {
      const [message] = messages as [One];
      setImmediate(() => void of(message).publish("results.a", { n: 1 }).catch(late.resolve));
      if (messages.length > 1) of({ ...message });
    });
    await publish(upTo(2));
    await invoke(2);
    expect(starts).toEqual([[1, 2], [1], [2]]);
    expect(await late.promise).toMatchObject({ message: expect.stringContaining("The handler has ended") });
    expect(await stored()).toEqual({});
  });
});

describe("a result that makes no sense", () => {
  const result = "A handler of batches: expected its result to be nothing or { failed: [{ sequence, error }] }, got";
  it.each<[string, unknown, string]>([
    ["another platform's", { batchItemFailures: [{ itemIdentifier: "1" }] }, `${result} {"batchItemFailures":[`],
    ["null", null, `${result} null`],
    ["results of each", [undefined, undefined], `${result} [null,null]`],
    ["failed that is no array", { failed: 1 }, `${result} {"failed":1}`],
    ["an unknown sequence", { failed: [{ sequence: 99, error: "x" }] }, "of the batch's messages (1), got {"],
    ["a sequence as text", { failed: [{ sequence: "1", error: "x" }] }, 'got {"sequence":"1","error":"x"}'],
    ["an error alone", { failed: [new Error("x")] }, "got {}"],
  ])("is an error of the handler, and loses nothing: %s", async (_, answer, error) => {
    await start((numbers) => (numbers.includes(1) ? answer : undefined));
    await publish(upTo(2));
    expect(await invoke(2)).toMatchObject({ acked: 1, retried: 1 });
    expect(starts).toEqual([[1, 2], [1], [2]]);
    expect(system.events).toMatchObject([{ sequence: 1, attempt: 1, error: expect.stringContaining(error) }]);
    expect(await stored()).toEqual({ "jobs.a": 1 });
  });
});

describe("messages that are started again", () => {
  it("have it written down before, all of a batch in one flight", async () => {
    const lookedUp = Promise.withResolvers<void>();
    const open: unknown[] = [];
    await start(async (numbers, messages) => {
      if (messages[0]?.attempt === 1) return { failed: messages.map(({ sequence }) => ({ sequence, error: "once" })) };
      await lookedUp.promise; // those that are not in this batch wait for the next one
      const { state } = await system.jsm.streams.info("SORTIE_ATTEMPTS");
      for (let seq = state.first_seq; seq <= state.last_seq; seq++) {
        const record = (await system.jsm.streams.getMessage("SORTIE_ATTEMPTS", { seq }))?.json<{ open?: unknown }>();
        if (record?.open) open.push(record);
      }
      expect(open.length).toBeGreaterThanOrEqual(numbers.length);
    });
    await publish(upTo(4));
    await invoke(4);
    let [read, underWay, most] = [0, 0, 0];
    const connect = async () => {
      const connection = await system.connect();
      return altered(connection, {
        async request(subject, ...rest) {
          const writes = subject.startsWith("sortie.attempts.");
          if (writes) most = Math.max(most, ++underWay);
          const answer = await connection.request(subject, ...rest);
          if (writes) underWay -= 1;
          if (subject.includes("MSG.GET.SORTIE_ATTEMPTS") && ++read === 4) setImmediate(lookedUp.resolve);
          return answer;
        },
      });
    };
    await expect.poll(async () => (await system.invoke({ connect, linger: "1s" })) && stored()).toEqual({});
    expect(starts.slice(1).flat().toSorted()).toEqual(upTo(4));
    expect(most).toBe(Math.max(...starts.slice(1).map((batch) => batch.length)));
    expect(most).toBeGreaterThan(1);
    expect(open).toMatchObject(Array(open.length).fill({ started: 1, open: { alone: false } }));
    expect((await system.jsm.streams.info("SORTIE_ATTEMPTS")).state.messages).toBe(0);
  });

  it("are batches of one where their function may have died of them", async () => {
    await start(() => undefined, { ackWait: "1s" });
    await publish(upTo(3));
    const lost = await system.js.consumers.get("JOBS", "worker");
    for await (const _ of await lost.fetch({ max_messages: 3, expires: 1_000 })); // delivered, and never heard of again
    await publish([4, 5]);
    await expect.poll(async () => (await system.invoke()) && stored()).toEqual({});
    expect(starts.filter((batch) => batch.some((n) => n <= 3)).toSorted()).toEqual([[1], [2], [3]]);
  });
});

describe("time that is over", () => {
  it.each<[string, (signal: AbortSignal) => Promise<never>]>([
    ["a handler that goes on regardless", () => new Promise(() => {})],
    [
      "a handler that heeds its signal",
      (signal) => new Promise((_, no) => signal.addEventListener("abort", () => no(signal.reason))),
    ],
  ])("charges nobody of a batch, whose messages come by themselves then: %s", async (_, hang) => {
    await start((numbers, __, { signal }) => (numbers.includes(2) ? hang(signal) : undefined), {
      retry: { ...retry, attempts: 1 },
    });
    await publish(upTo(3));
    expect(await invoke(3, { budgetMs: 1_000 })).toMatchObject({
      pulled: 3,
      retried: 3,
      unconfirmed: 0,
      ended: "budget",
    });
    await expect.poll(async () => (await system.invoke({ budgetMs: 1_000 })) && stored()).toEqual({});
    expect(starts.slice(1).toSorted()).toEqual([[1], [2], [3]]);
    expect(await deadLetters()).toMatchObject([{ n: 2, reason: "attempts-exhausted", attempts: "1" }]);
  });

  it("hands back what was not started, at no attempt", async () => {
    await start(
      async (numbers, _, { signal }) => {
        if (numbers.includes(5)) await new Promise((resolve) => signal.addEventListener("abort", resolve));
      },
      { size: 2 },
    );
    await publish(upTo(10));
    const connect = async () => inPieces(await system.connect(), 2, 2, 2, 2, 2);
    const [report] = (await system.invoke({ connect, budgetMs: 1_500 })).consumers;
    expect(report?.acked).toBe(6);
    expect(report?.pulled).toBe(6 + (report?.returned ?? 0));
    await system.settle();
    expect(starts.flat().toSorted((a, b) => a - b)).toEqual(upTo(10));
  });

  it("stops the halving", async () => {
    await start((numbers, _, { signal }) => {
      if (numbers.length > 2) throw new Error("too many");
      return new Promise((resolve) => signal.addEventListener("abort", () => resolve(undefined)));
    });
    await publish(upTo(4));
    expect(await invoke(4, { budgetMs: 1_000 })).toMatchObject({ acked: 2, retried: 2 });
    expect(starts).toEqual([upTo(4), [1, 2]]);
    expect(system.events).toMatchObject(Array(2).fill({ event: "retried", attempt: 0, error: "Error: too many" }));
  });
});

describe("what holds handlers back", () => {
  it("as a rate limit counts messages, of which those are together whose slots are close", async () => {
    const at: number[] = [];
    await start((numbers) => at.push(...numbers.map(() => Date.now())) && undefined, {
      rateLimit: { messages: 1_000, per: "1s" },
    });
    await Promise.all(upTo(1_200).map((n) => system.publish("jobs.a", { n })));
    await system.settle();
    expect(at).toHaveLength(1_200);
    const most = Math.max(...at.map((from) => at.filter((time) => time >= from && time < from + 1_000).length));
    expect(most).toBeLessThanOrEqual(1_050);
    expect(Math.max(...starts.map(({ length }) => length))).toBe(8);
  });

  it("as a rate limit that several invocations keep to lets each message start once, without going back and forth", async () => {
    await start(() => new Promise((resolve) => setTimeout(resolve, 50)).then(() => undefined), {
      rateLimit: { messages: 100, per: "1s" },
    });
    await publish(upTo(150));
    const reports = await Promise.all(upTo(3).map(() => system.invoke({ budgetMs: 15_000 })));
    const all = reports.map(({ consumers }) => consumers[0]);
    expect(all).toMatchObject(all.map(() => ({ retried: 0, unconfirmed: 0, leaseLost: 0 })));
    expect(starts.flat().toSorted((a, b) => a - b)).toEqual(upTo(150));
    expect(all.reduce((sum, report) => sum + (report?.returned ?? 0), 0)).toBeLessThan(50);
  });

  it("as a circuit breaker stops the halving, and what was not started again is handed back", async () => {
    await start(
      () => {
        throw new Error("the database is away");
      },
      { breaker: { failureRatio: 0.5, minimum: 4, window: "1m", openFor: "30s" } },
    );
    await publish(upTo(8));
    expect(await invoke(8)).toMatchObject({ pulled: 8, retried: 4, returned: 4, ended: "open", breaker: "open" });
    expect(starts).toHaveLength(8);
    const { messages } = (await system.jsm.streams.info("SORTIE_ATTEMPTS")).state;
    expect(messages).toBe(8); // what failed, and that the others did not
  });

  it("as the places of an invocation gives a batch one of them", async () => {
    let [running, most] = [0, 0];
    const sizes: number[] = [];
    const handler = async (messages: readonly unknown[]) => {
      sizes.push(messages.length);
      most = Math.max(most, ++running);
      await new Promise((resolve) => setTimeout(resolve, 5));
      running -= 1;
    };
    const other = defineStream("OTHER", { subjects: { other: Job }, retention: "workqueue" });
    const app = createApp({ streams: [jobs, other, dead] })
      .handleBatch(defineConsumer(jobs, "worker", { filter: "jobs.a", deadLetter: "dead.jobs" }), handler)
      .handleBatch(defineConsumer(other, "worker", { deadLetter: "dead.other" }), handler);
    system = await startSystem(app);
    for (const n of upTo(40)) await Promise.all([publish([n]), system.publish("other", { n })]);
    const { consumers } = await system.invoke({ concurrency: 2 });
    expect(consumers).toMatchObject(Array(2).fill({ acked: 40, ended: "drained" }));
    expect(most).toBe(2);
    expect(Math.max(...sizes)).toBe(10);
  });
});

describe("a batch whose messages someone else may have by now", () => {
  it("is not started again for halves", async () => {
    let frozen = 1_500;
    await start(
      () => {
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, frozen); // as if the function was frozen
        if (frozen === 0) return;
        frozen = 0;
        throw new Error("after a while");
      },
      { ackWait: "1s" },
    );
    await publish(upTo(4));
    expect(await invoke(4)).toMatchObject({ leaseLost: 4, unconfirmed: 0 });
    await system.settle();
    expect(await stored()).toEqual({});
    // it was left to whoever has them: the server delivered them again, and what became of them before was not known
    expect(starts[0]).toEqual(upTo(4));
    expect(starts.slice(1).toSorted()).toEqual([[1], [2], [3], [4]]);
  });
});

describe("a schema that never answers", () => {
  it("costs its message an attempt, and lets the others go on without it", async () => {
    const schema: Schema<string> = {
      "~standard": {
        version: 1,
        vendor: "test",
        validate: (value) => (value === "hang" ? new Promise(() => {}) : { value: value as string }),
      },
    };
    const slow = defineStream("SLOW", { subjects: { slow: schema } });
    const worker = defineConsumer(slow, "worker", { deadLetter: "dead.slow", retry: { ...retry, attempts: 1 } });
    const handled: string[] = [];
    const app = createApp({ streams: [slow, dead] }).handleBatch(worker, (messages) => {
      handled.push(...messages.map(({ data }) => data));
    });
    system = await startSystem(app);
    for (const word of ["a", "hang", "b"]) await system.publish("slow", word);
    expect(await invoke(3, { budgetMs: 1_000 })).toMatchObject({ deadLettered: 1, retried: 2, unconfirmed: 0 });
    await system.settle();
    expect(handled.toSorted()).toEqual(["a", "b"]);
  });
});

describe("a handler of batches", () => {
  const worker = (batch = 256) => defineConsumer(jobs, "worker", { deadLetter: "dead.jobs", filter: "jobs.a", batch });
  const app = () => createApp({ streams: [jobs, dead] });

  it("is one of a consumer's handlers, of which it has one", () => {
    const one = worker();
    expect(() =>
      app()
        .on(one, () => {})
        .handleBatch(one, () => {}),
    ).toThrow(/expected one `on` or `handleBatch`/);
    expect(() =>
      app()
        .handleBatch(one, () => {})
        .on(one, () => {}),
    ).toThrow(/has a handler already/);
  });

  it.each([0, 1.5, Number.NaN])("has a size that is a whole number from 1, not %s", (size) => {
    expect(() => app().handleBatch(worker(), () => {}, { size })).toThrow(/expected size to be a whole number from 1/);
  });

  it("has a size that may be in hand", () => {
    expect(() => app().handleBatch(worker(100), () => {}, { size: 101 })).toThrow(
      /expected size \(101\) of its handler's batches to be no more than what may be in hand, its batch \(100\)/,
    );
  });
});
