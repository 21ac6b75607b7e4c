import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { readBreaker, resetBreaker, tripBreaker } from "../../src/consume/breaker-control.ts";
import { type BreakerState, decideAfter, decideEntry } from "../../src/consume/breaker-state.ts";
import { createApp, defineConsumer, defineStream, fixed, NonRetriableError, RetryAfterError } from "../../src/index.ts";
import { asFunction, functionDenied } from "../support/logins.ts";
import { type System, startSystem } from "../support/system.ts";

const Job = z.object({ n: z.number() });
const jobs = defineStream("JOBS", { subjects: { "jobs.a": Job }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });

let system: System | undefined;
afterEach(() => system?.[Symbol.asyncDispose]());

/** A system whose other side is down until `up` is set. */
async function start(
  options: { openFor?: "300ms" | "1m"; minimum?: number; counts?: (error: unknown) => boolean } = {},
) {
  const { openFor = "1m", minimum = 5, counts } = options;
  const worker = defineConsumer(jobs, "worker", {
    deadLetter: "dead.jobs",
    concurrency: 2,
    retry: { attempts: 100, backoff: fixed(10) },
    breaker: { failureRatio: 0.5, minimum, openFor, ...(counts && { counts }) },
  });
  const other = {
    up: false,
    error: new Error("the other side is down"),
    starts: [] as number[],
    lastWait: Promise.resolve(), // of the thirtieth, and those after it
  };
  const app = createApp({ streams: [jobs, dead] }).on(worker, async ({ data: { n } }) => {
    other.starts.push(n);
    await new Promise((resolve) => setTimeout(resolve, 2));
    if (other.starts.length >= 30) await other.lastWait;
    if (!other.up) throw other.error;
  });
  const made = await startSystem(app);
  system = made;
  for (let n = 0; n < 30; n++) await made.publish("jobs.a", { n });
  const info = () => made.jsm.consumers.info("JOBS", "worker");
  return { system: { ...made, worker }, other, info };
}

describe("a circuit breaker", () => {
  it("opens where too many handlers fail, and stops every invocation by pausing the consumer", async () => {
    const { system, other, info } = await start();
    const reports = await Promise.all([system.invoke(), system.invoke()]);
    expect(reports.map(({ consumers }) => consumers[0])).toMatchObject([
      { ended: "open", breaker: "open", unconfirmed: 0, leaseLost: 0 },
      { ended: "open", breaker: "open", unconfirmed: 0, leaseLost: 0 },
    ]);
    const started = other.starts.length;
    expect(started).toBeLessThan(5 + 2 * 2 * 2); // what ran beside the fifth one
    expect(await info()).toMatchObject({ paused: true });
    // open is an answer, and burns nothing
    const { consumers } = await system.invoke();
    expect(consumers).toMatchObject([{ pulled: 0, ended: "open", breaker: "open", lag: 30, more: false }]);
    expect(consumers[0]?.error).toBeUndefined();
    expect(other.starts).toHaveLength(started);
    expect((await system.jsm.streams.info("DEAD")).state.messages).toBe(0);
  });

  it("tries one message when its time is over, and stays open where that fails", async () => {
    const { system, other } = await start({ openFor: "300ms" });
    await system.invoke();
    const started = other.starts.length;
    await expect.poll(async () => (await system.invoke()) && other.starts.length).toBe(started + 1);
    expect((await system.invoke()).consumers).toMatchObject([{ pulled: 0, ended: "open" }]);
    expect(other.starts).toHaveLength(started + 1);
  });

  it("closes where that succeeds, and the same invocation goes on with the rest", async () => {
    const { system, other, info } = await start({ openFor: "300ms" });
    await system.invoke();
    other.up = true;
    await expect.poll(async () => (await system.invoke()).consumers[0]?.breaker).toBe("closed");
    await system.settle();
    expect(await info()).toMatchObject({ num_pending: 0, num_ack_pending: 0 });
  });

  it("lets one invocation try, of several that come at the same time", async () => {
    const { system, other } = await start({ openFor: "300ms" });
    await system.invoke();
    const started = other.starts.length;
    await new Promise((resolve) => setTimeout(resolve, 320));
    const reports = await Promise.all(Array.from({ length: 4 }, () => system.invoke()));
    expect(other.starts).toHaveLength(started + 1);
    expect(reports.map(({ consumers }) => consumers[0]?.ended)).toEqual(["open", "open", "open", "open"]);
  });

  it("tells an invocation that lingers that another one has seen it open", async () => {
    const { system, other } = await start({ minimum: 30 });
    other.up = true;
    const lingering = system.invoke({ linger: "until-budget", budgetMs: 20_000 });
    await expect.poll(async () => other.starts.length).toBe(30);
    other.up = false;
    for (let n = 0; n < 60; n++) await system.publish("jobs.a", { n });
    const { consumers, ms } = await lingering;
    expect(consumers).toMatchObject([{ ended: "open" }]);
    expect(ms).toBeLessThan(15_000);
  });

  it.each([
    [
      "a policy that throws when it is asked",
      new Error("no response"),
      (error: unknown) => (error as { response: { status: number } }).response.status > 499,
    ],
    ["an error that is none", undefined, () => true],
  ])("counts as failed what fails, with %s", async (_, error, counts) => {
    const { system, other } = await start({ counts });
    other.error = error as Error;
    expect((await system.invoke({ budgetMs: 4_000 })).consumers).toMatchObject([{ ended: "open", unconfirmed: 0 }]);
  });

  it("counts what its policy says: not what is wrong with a message", async () => {
    const { system, other } = await start();
    other.error = new NonRetriableError("a bad message");
    await system.publish("jobs.a", "no job");
    const { consumers } = await system.invoke();
    expect(consumers).toMatchObject([{ deadLettered: 31, ended: "drained", breaker: "closed" }]);
  });

  it("opened tomorrow, by a clock that was wrong, is tried all the same", async () => {
    const { system, other } = await start();
    const tomorrow = () => Date.now() + 86_400_000;
    await system.invoke({ now: tomorrow, deadline: tomorrow() + 10_000 });
    expect((await system.jsm.consumers.info("JOBS", "worker")).paused).toBe(true);
    other.up = true;
    expect((await system.invoke()).consumers).toMatchObject([{ breaker: "closed" }]);
  });

  it("whose stream is missing leaves messages where they are, and the report says so", async () => {
    const { system, other } = await start();
    await system.jsm.streams.delete("SORTIE_BREAKERS");
    const { consumers } = await system.invoke();
    expect(consumers).toMatchObject([
      { pulled: 0, ended: "failed", error: expect.stringMatching(/SORTIE_BREAKERS.*npx sortie apply/) },
    ]);
    expect(consumers[0]).not.toHaveProperty("breaker"); // nobody knows
    expect(other.starts).toEqual([]);
  });

  it("tries on until a handler has ended: what cannot be read tells nothing", async () => {
    const { system, other } = await start({ openFor: "300ms" });
    await system.jsm.streams.purge("JOBS");
    const connection = await system.connect();
    await tripBreaker(connection, system.worker, 1);
    await connection.close();
    for (let n = 0; n < 5; n++) await system.publish("jobs.a", "no job");
    await system.publish("jobs.a", { n: 1 });
    await system.publish("jobs.a", { n: 2 });
    expect((await system.invoke()).consumers).toMatchObject([
      { pulled: 6, deadLettered: 5, retried: 1, ended: "open" },
    ]);
    expect(other.starts).toEqual([1]);
    other.up = true;
    await expect.poll(async () => (await system.invoke()).consumers[0]?.breaker).toBe("closed");
    await system.settle();
    expect(other.starts.toSorted()).toEqual([1, 1, 2]);
  });

  it("starts nothing once more in place, and no half of a batch, while it is about to open", async () => {
    class Flaky extends Error {}
    const starts: number[][] = [];
    const worker = defineConsumer(jobs, "worker", {
      deadLetter: "dead.jobs",
      retry: { attempts: 100, backoff: fixed(10), rules: [{ on: Flaky, do: { inPlace: 50 } }] },
      breaker: { failureRatio: 1, minimum: 3 },
    });
    const app = createApp({ streams: [jobs, dead] }).on(worker, ({ data: { n } }) => {
      starts.push([n]);
      throw new Flaky("the other side is down");
    });
    system = await startSystem(app);
    await system.publish("jobs.a", { n: 1 });
    expect((await system.invoke()).consumers).toMatchObject([{ ended: "open", retried: 1, unconfirmed: 0 }]);
    expect(starts).toHaveLength(3);
  });

  it.each([
    [{ failureRatio: 0 }, "expected breaker.failureRatio above 0 and up to 1, got 0"],
    [{ failureRatio: 1, minimum: 0 }, "expected breaker.minimum to be a whole number from 1, got 0"],
    [{ failureRatio: 1, openFor: 5 }, "expected breaker.openFor of 100 ms or more, got 5 ms"],
    [{ failureRatio: 1, counts: true as never }, "expected breaker.counts to be a function, got boolean"],
  ])("that makes no sense is refused: %o", (breaker, error) => {
    expect(() => defineConsumer(jobs, "worker", { deadLetter: "dead.jobs", breaker })).toThrow(error);
  });
});

describe("by hand", () => {
  it("it is looked at, opened and closed, which invocations that run heed", async () => {
    const { system, other, info } = await start();
    other.up = true;
    const connection = await system.connect();
    expect(await readBreaker(connection, system.worker)).toEqual({ state: "closed" });
    const lingering = system.invoke({ linger: "until-budget", budgetMs: 20_000 });
    await expect.poll(() => other.starts.length).toBe(30);
    await tripBreaker(connection, system.worker, 60_000);
    expect((await lingering).consumers).toMatchObject([{ ended: "open", acked: 30 }]);
    expect(await readBreaker(connection, system.worker)).toMatchObject({ state: "open", reason: "opened by hand" });
    expect(await info()).toMatchObject({ paused: true });
    await system.publish("jobs.a", { n: 30 });
    expect((await system.invoke()).consumers).toMatchObject([{ pulled: 0, ended: "open" }]);
    await resetBreaker(connection, system.worker);
    expect((await system.invoke()).consumers).toMatchObject([{ acked: 1, ended: "drained", breaker: "closed" }]);
    await connection.close();
  });
});

describe("a half-open breaker", () => {
  it("is not left so by invocations that found nothing to try it with", async () => {
    const { system } = await start();
    await system.jsm.streams.purge("JOBS");
    const connection = await system.connect();
    await tripBreaker(connection, system.worker, 1);
    const soon = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
    for (let round = 0; round < 10; round++) {
      const late = async (ms: number) => (await soon(ms)) ?? system.invoke({ budgetMs: 30_000 });
      await Promise.all(Array.from({ length: 10 }, (_, n) => late(2 * n)));
      expect((await readBreaker(connection, system.worker)).state).not.toBe("half-open");
    }
    await connection.close();
  });

  it("is tried with what is parked and due, behind what is parked and not due", async () => {
    let down = true;
    const handled: number[] = [];
    const worker = defineConsumer(jobs, "worker", {
      deadLetter: "dead.jobs",
      maxAckPending: 100,
      breaker: { failureRatio: 1, minimum: 1_000 },
    });
    const app = createApp({ streams: [jobs, dead] }).on(worker, ({ data: { n } }) => {
      if (down) throw new RetryAfterError("later", n < 10 ? 600_000 : 5_000);
      handled.push(n);
    });
    const made = await startSystem(app);
    system = made;
    for (let n = 0; n < 12; n++) await made.publish("jobs.a", { n });
    await made.invoke({ concurrency: 1 });
    down = false;
    const connection = await made.connect();
    await tripBreaker(connection, worker, 1);
    await connection.close();
    const now = () => Date.now() + 5_500;
    const { consumers } = await made.invoke({ now, deadline: now() + 5_000 });
    expect(consumers).toMatchObject([{ breaker: "closed", acked: 2 }]);
    expect(handled.toSorted()).toEqual([10, 11]);
  });

  it("whose prober died before it ended the pause of a wrong clock is tried all the same", async () => {
    const { system, other, info } = await start();
    const connection = await system.connect();
    const tomorrow = Date.now() + 86_400_000;
    await system.jsm.consumers.pause("JOBS", "worker", new Date(tomorrow));
    const state = {
      state: "half-open",
      since: Date.now() - 10,
      until: Date.now() - 1,
      by: "died",
      pausedUntil: tomorrow,
    };
    await system.js.publish("sortie.breakers.JOBS.worker", JSON.stringify(state));
    other.up = true;
    expect((await system.invoke()).consumers).toMatchObject([{ breaker: "closed", acked: 30 }]);
    expect((await info()).paused).toBeFalsy();
    await connection.close();
  });

  it("is tried where the host's clock says that the time is over, and the server's pause says that it is not", async () => {
    const { system, other, info } = await start();
    other.up = true;
    const connection = await system.connect();
    await tripBreaker(connection, system.worker, 60_000);
    const ahead = () => Date.now() + 70_000;
    const { consumers } = await system.invoke({ now: ahead, deadline: ahead() + 10_000 });
    expect(consumers).toMatchObject([{ breaker: "closed", acked: 30 }]);
    expect((await info()).paused).toBeFalsy();
    await connection.close();
  });

  it("that is reset by hand while it opens leaves no pause behind", async () => {
    const { system } = await start({ minimum: 1 });
    const connection = await system.connect();
    for (let round = 0; round < 5; round++) {
      const reset = Promise.withResolvers<unknown>();
      const news = system.tcp.subscribe("sortie.breakers.>", {
        callback: (_, message) => {
          if (!message.string().includes('"open"')) return;
          news.unsubscribe();
          reset.resolve(resetBreaker(connection, system.worker));
        },
      });
      await system.tcp.flush();
      await system.invoke({ budgetMs: 3_000 });
      await reset.promise;
      expect(await resetBreaker(connection, system.worker)).toEqual({ state: "closed" });
    }
    await connection.close();
  });
});

describe("a breaker of which nobody can be told", () => {
  async function startDenied(denied: "publish" | "subscribe") {
    let starts = 0;
    const worker = defineConsumer(jobs, "worker", {
      deadLetter: "dead.jobs",
      concurrency: 2,
      retry: { attempts: 100, backoff: fixed(10) },
      breaker: { failureRatio: 0.5, minimum: 5 },
    });
    const app = createApp({ streams: [jobs, dead] }).on(worker, async () => {
      starts += 1;
      await new Promise((resolve) => setTimeout(resolve, 2));
      throw new Error("down");
    });
    const made = await startSystem(app, { config: functionDenied(denied, "sortie.breakers.>") });
    system = made;
    for (let n = 0; n < 30; n++) await made.publish("jobs.a", { n });
    const { consumers } = await made.invoke({ connect: asFunction(made.server), budgetMs: 4_000 });
    expect(consumers).toMatchObject([{ ended: "open", error: expect.stringMatching(/sortie\.breakers|permission/i) }]);
    return starts;
  }

  it("stops the invocation that would open it, where it cannot be written down", async () => {
    expect(await startDenied("publish")).toBeLessThan(20);
  });

  it("is in the report, where it cannot be heard of", async () => {
    expect(await startDenied("subscribe")).toBeLessThan(20);
  });
});

describe("handlers that use the processor", () => {
  it.each(["a schema that answers at once", "one that does not", "in batches"])(
    "are not started when the one before has opened it: %s",
    async (kind) => {
      let starts = 0;
      const schema = kind === "one that does not" ? Job.refine(async () => true) : Job;
      const busy = defineStream("BUSY", { subjects: { busy: schema }, retention: "workqueue" });
      const worker = defineConsumer(busy, "worker", {
        deadLetter: "dead.jobs",
        concurrency: 4,
        breaker: { failureRatio: 0.5, minimum: 1 },
      });
      const burn = () => {
        starts += 1;
        for (const until = Date.now() + 60; Date.now() < until; );
        return new Error("down");
      };
      const empty = createApp({ streams: [busy, dead] });
      const app =
        kind === "in batches"
          ? empty.handleBatch(worker, (messages) => {
              const error = burn();
              return { failed: messages.map(({ sequence }) => ({ sequence, error })) };
            })
          : empty.on(worker, () => {
              throw burn();
            });
      const made = await startSystem(app);
      system = made;
      for (let n = 0; n < 12; n++) await made.publish("busy", { n });
      expect((await made.invoke()).consumers).toMatchObject([{ ended: "open" }]);
      expect(starts).toBe(1);
    },
  );
});

describe("messages that wait for a rate limit when the breaker opens", () => {
  it("are handed back, uncharged, and keep no invocation until the end of its time", async () => {
    const attempts: number[] = [];
    const worker = defineConsumer(jobs, "worker", {
      deadLetter: "dead.jobs",
      rateLimit: { messages: 20, per: "2s" },
      breaker: { failureRatio: 0.5, minimum: 3 },
    });
    const app = createApp({ streams: [jobs, dead] }).on(worker, ({ attempt }) => {
      attempts.push(attempt);
      throw new Error("the other side is down");
    });
    system = await startSystem(app);
    for (let n = 0; n < 30; n++) await system.publish("jobs.a", { n });
    const both = Array.from({ length: 2 }, () => system?.invoke({ budgetMs: 20_000 }));
    for (const report of await Promise.all(both)) {
      expect(report?.consumers).toMatchObject([{ ended: "open", unconfirmed: 0, leaseLost: 0 }]);
      expect(report?.ms).toBeLessThan(12_000);
    }
    expect(attempts.length).toBeLessThanOrEqual(5);
    const { num_pending, num_ack_pending } = await system.jsm.consumers.info("JOBS", "worker");
    expect(num_pending + num_ack_pending).toBe(30);
    expect((await system.jsm.streams.info("DEAD")).state.messages).toBe(0);
  });
});

describe("a schema that takes its time", () => {
  it("lets no handler start when the breaker has opened meanwhile", async () => {
    const opened = Promise.withResolvers<void>();
    const validate = async (value: unknown) => {
      if ((value as { n: number }).n > 0) await opened.promise;
      return { value };
    };
    const slow = defineStream("SLOW", {
      subjects: { slow: { "~standard": { version: 1, vendor: "test", validate } } as const },
      retention: "workqueue",
    });
    const worker = defineConsumer(slow, "worker", {
      deadLetter: "dead.slow",
      breaker: { failureRatio: 1, minimum: 1 },
    });
    let starts = 0;
    const app = createApp({ streams: [slow, dead] }).on(worker, () => {
      starts += 1;
      throw new Error("down");
    });
    system = await startSystem(app);
    system.tcp.subscribe("sortie.breakers.>", {
      callback: (_, message) => {
        if (message.string().includes('"open"')) opened.resolve();
      },
    });
    for (let n = 0; n < 10; n++) await system.publish("slow", { n });
    expect((await system.invoke()).consumers).toMatchObject([{ ended: "open", retried: 1, returned: 9 }]);
    expect(starts).toBe(1);
  });
});

describe("a pause of an operator", () => {
  it("is neither shortened by a breaker that opens, nor ended by one that is reset", async () => {
    const { system, other, info } = await start({ minimum: 30 });
    const until = new Date(Date.now() + 3_600_000);
    const paused = Promise.withResolvers<void>();
    other.lastWait = paused.promise;
    const opening = system.invoke();
    await expect.poll(() => other.starts.length).toBeGreaterThan(29);
    await system.jsm.consumers.pause("JOBS", "worker", until);
    paused.resolve();
    expect((await opening).consumers).toMatchObject([{ ended: "open" }]);
    expect(Date.parse((await info()).config.pause_until ?? "")).toBe(until.getTime());
    const connection = await system.connect();
    expect(await resetBreaker(connection, system.worker)).toEqual({ state: "closed", pausedUntil: until });
    expect((await info()).paused).toBe(true);
    await system.jsm.consumers.resume("JOBS", "worker");
    await tripBreaker(connection, system.worker, 600_000);
    const tripped = await tripBreaker(connection, system.worker, 60_000); // its own is
    expect(tripped.state === "open" && tripped.until.getTime()).toBe(
      Date.parse((await info()).config.pause_until ?? ""),
    );
    expect(await resetBreaker(connection, system.worker)).toEqual({ state: "closed" });
    expect((await info()).paused).toBeFalsy();
    await connection.close();
  });
});

describe("its decisions", () => {
  const policy = { failureRatio: 0.5, minimum: 10, windowMs: 1_000, openForMs: 5_000 };
  const at = (now: number) => ({ by: "me", now });

  it("look at what ended within the window", () => {
    let state: BreakerState = { state: "closed", slices: [] };
    const note = (counts: { ended: number; failed: number }, now: number) => {
      if (state.state === "closed") state = decideAfter(state.slices, counts, policy, at(now));
      return state.state;
    };
    expect(note({ ended: 9, failed: 9 }, 10_000)).toBe("closed"); // too few
    expect(note({ ended: 11, failed: 0 }, 10_500)).toBe("closed"); // 9 of 20
    expect(note({ ended: 1, failed: 1 }, 11_400)).toBe("closed"); // 1 of 12: the nine are out of the window
    expect(note({ ended: 9, failed: 9 }, 11_480)).toBe("closed"); // 10 of 21
    expect(note({ ended: 1, failed: 1 }, 11_490)).toBe("open"); // 11 of 22
    expect(state).toEqual({
      state: "open",
      since: 11_490,
      until: 16_490,
      reason: "11 of 22 handlers failed",
      by: "me",
    });
  });

  it("let one in where a clock that was wrong has opened it tomorrow", () => {
    const ahead: BreakerState = { state: "open", since: 86_400_000, until: 86_430_000, reason: "", by: "other" };
    const next = { state: "half-open", since: 100, until: 500, by: "me", pausedUntil: 86_430_000 } as const; // to be resumed
    expect(decideEntry(ahead, { ...at(100), until: 500 })).toEqual({ entry: "probe", next });
  });

  it("let one in when the time is over, and another one when that one's time is", () => {
    const open: BreakerState = { state: "open", since: 0, until: 100, reason: "", by: "other" };
    expect(decideEntry(open, { ...at(99), until: 500 })).toEqual({ entry: "nothing" });
    const next = { state: "half-open", since: 0, until: 500, by: "me", pausedUntil: 100 } as const;
    expect(decideEntry(open, { ...at(100), until: 500 })).toEqual({ entry: "probe", next });
    expect(decideEntry(next, { by: "third", now: 499, until: 900 })).toEqual({ entry: "nothing" });
    expect(decideEntry(next, { by: "third", now: 500, until: 900 })).toMatchObject({
      entry: "probe",
      next: { by: "third" },
    });
  });
});
