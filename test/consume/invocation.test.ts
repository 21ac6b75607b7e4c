import { headers } from "@nats-io/nats-core";
import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import type { App } from "../../src/app.ts";
import { deadLetterHeaders } from "../../src/dead-letter/story.ts";
import {
  type ConsumerOptions,
  createApp,
  defineConsumer,
  defineStream,
  fixed,
  type Handler,
  NonRetriableError,
  RetryAfterError,
  type Schema,
} from "../../src/index.ts";
import { connect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import { altered, losing } from "../support/connections.ts";
import { publishRaw, startProxy } from "../support/peers.ts";
import { type System, startSystem } from "../support/system.ts";

const Job = z.object({ n: z.number() });
const jobs = defineStream("JOBS", {
  subjects: { "jobs.a": Job, "jobs.b": Job, "results.a": Job },
  retention: "workqueue",
});
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const base = { filter: "jobs.a", deadLetter: "dead.jobs", retry: { attempts: 3, backoff: fixed(20) } } as const;
const consumer = (options: Partial<ConsumerOptions<"jobs.a">> = {}) =>
  defineConsumer(jobs, "worker", { ...base, ...options });
const create = () => createApp({ streams: [jobs, dead] });

const isAck = (subject: string) => subject.startsWith("$JS.ACK");

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

async function start(app: App) {
  system = await startSystem(app);
  return system;
}

async function deadLetters() {
  const { messages } = (await system.jsm.streams.info("DEAD")).state;
  return Promise.all(
    Array.from({ length: messages }, (_, index) => system.jsm.streams.getMessage("DEAD", { seq: index + 1 })),
  );
}

async function left(stream = "JOBS") {
  return (await system.jsm.streams.info(stream)).state.messages;
}

describe("a message that is handled", () => {
  it("is acknowledged, confirmed and gone from the work queue, with a report that says so", async () => {
    const seen: unknown[] = [];
    const { publish, invoke } = await start(create().on(consumer(), (message) => seen.push(message)));
    const sequence = await publish("jobs.a", { n: 1 }, "id-1");
    await publish("jobs.a", { n: 2 });
    const { consumers, ms } = await invoke();
    expect(consumers).toEqual([
      {
        stream: "JOBS",
        consumer: "worker",
        pulled: 2,
        acked: 2,
        discarded: 0,
        duplicates: 0,
        retried: 0,
        deadLettered: 0,
        returned: 0,
        unconfirmed: 0,
        leaseLost: 0,
        lag: 0,
        more: false,
        ended: "drained",
      },
    ]);
    expect(ms).toBeLessThan(5_000);
    expect(seen).toMatchObject([
      { subject: "jobs.a", data: { n: 1 }, id: "id-1", attempt: 1, stream: "JOBS", sequence },
      { data: { n: 2 }, id: `JOBS.${sequence + 1}` },
    ]);
    expect(await left()).toBe(0);
    expect((await system.jsm.consumers.info("JOBS", "worker")).num_waiting).toBe(0);
  });

  it("runs beside others, as many as `concurrency` says and no more", async () => {
    let running = 0;
    let most = 0;
    const gate = Promise.withResolvers<void>();
    const { publish, invoke } = await start(
      create().on(consumer({ concurrency: 3 }), async () => {
        running += 1;
        most = Math.max(most, running);
        if (running === 3) gate.resolve();
        await gate.promise;
        running -= 1;
      }),
    );
    for (let n = 0; n < 10; n++) await publish("jobs.a", { n });
    expect((await invoke()).consumers[0]).toMatchObject({ acked: 10 });
    expect(most).toBe(3);
  });

  it("keeps its lease while the handler takes longer than the ack-wait", async () => {
    let starts = 0;
    const { publish, invoke } = await start(
      create().on(consumer({ ackWait: "1s" }), async () => {
        starts += 1;
        await new Promise((resolve) => setTimeout(resolve, 2_500));
      }),
    );
    await publish("jobs.a", { n: 1 });
    const [first] = await Promise.all([
      invoke(),
      new Promise((resolve) => setTimeout(resolve, 1_800)).then(() => invoke()),
    ]);
    expect(first.consumers[0]).toMatchObject({ acked: 1, unconfirmed: 0 });
    expect(starts).toBe(1);
  });
});

describe("a handler that throws", () => {
  it("is started again after its backoff, and counts its attempts", async () => {
    const attempts: number[] = [];
    const { publish, settle, events } = await start(
      create().on(consumer(), ({ attempt }) => {
        attempts.push(attempt);
        if (attempt < 3) throw new Error("not yet");
      }),
    );
    await publish("jobs.a", { n: 1 });
    await settle();
    expect(attempts).toEqual([1, 2, 3]);
    expect(events).toMatchObject([
      { event: "retried", attempt: 1, delayMs: 20, error: "Error: not yet" },
      { event: "retried", attempt: 2 },
    ]);
    expect(await left()).toBe(0);
  });

  it("is not started before the time that its error names", async () => {
    const starts: number[] = [];
    const { publish, settle } = await start(
      create().on(consumer(), ({ attempt }) => {
        starts.push(Date.now());
        if (attempt === 1) throw new RetryAfterError("busy", "700ms");
      }),
    );
    await publish("jobs.a", { n: 1 });
    await settle();
    expect((starts[1] as number) - (starts[0] as number)).toBeGreaterThanOrEqual(700);
  });

  it("sends the message to the dead letters after its last attempt, with its story", async () => {
    const { publish, settle } = await start(
      create().on(consumer(), () => {
        throw new Error("línea 1\r\nline 2");
      }),
    );
    const sequence = await publish("jobs.a", { n: 7 }, "id-7");
    await settle();
    const [letter, ...others] = await deadLetters();
    expect(others).toEqual([]);
    expect(letter?.subject).toBe("dead.jobs");
    expect(letter?.json()).toEqual({ n: 7 });
    const story = Object.fromEntries(
      Object.entries(deadLetterHeaders).map(([key, name]) => [key, letter?.header.get(name)]),
    );
    expect(story).toMatchObject({
      reason: "attempts-exhausted",
      error: "Error: l\\u00ednea 1 line 2",
      stream: "JOBS",
      sequence: `${sequence}`,
      subject: "jobs.a",
      consumer: "worker",
      attempts: "3",
      messageId: "id-7",
    });
    expect(Date.parse(story.time ?? "")).toBeGreaterThan(Date.now() - 60_000);
    expect(await left()).toBe(0);
  });

  it("sends it there on the first attempt where it is non-retriable", async () => {
    const { publish, invoke } = await start(
      create().on(consumer(), () => {
        throw new NonRetriableError("card declined");
      }),
    );
    await publish("jobs.a", { n: 1 });
    expect((await invoke()).consumers[0]).toMatchObject({ pulled: 1, deadLettered: 1 });
    const [letter] = await deadLetters();
    expect(letter?.header.get(deadLetterHeaders.reason)).toBe("non-retriable");
    expect(letter?.header.get(deadLetterHeaders.attempts)).toBe("1");
  });
});

describe("a message that cannot be read", () => {
  it("goes to the dead letters byte for byte, and its handler is never started", async () => {
    let starts = 0;
    const all = defineConsumer(jobs, "worker", { ...base, filter: "jobs.a" });
    const { js, invoke } = await start(create().on(all, () => void starts++));
    const payloads = [
      new Uint8Array([0xff, 0xfe]),
      new TextEncoder().encode("{"),
      new Uint8Array(),
      new TextEncoder().encode('{"n":"1"}'),
    ];
    for (const payload of payloads) await js.publish("jobs.a", payload);
    expect((await invoke()).consumers[0]).toMatchObject({ pulled: 4, deadLettered: 4 });
    const letters = await deadLetters();
    const bySequence = letters.toSorted(
      (a, b) => Number(a?.header.get("Sortie-Sequence")) - Number(b?.header.get("Sortie-Sequence")),
    );
    expect(bySequence.map((letter) => letter?.data)).toEqual(payloads);
    expect(bySequence.map((letter) => letter?.header.get("Sortie-Reason"))).toEqual([
      "undecodable",
      "undecodable",
      "undecodable",
      "invalid",
    ]);
    expect(bySequence.at(-1)?.header.get("Sortie-Error")).toMatch(/n: .*expected number/);
    expect(starts).toBe(0);
    expect(await left()).toBe(0);
  });

  it("leaves the server's own headers behind, which would command it", async () => {
    const { js, invoke } = await start(create().on(consumer(), () => {}));
    const own = headers();
    own.set("Nats-Expected-Stream", "JOBS");
    own.set("X-Trace", "abc");
    await js.publish("jobs.a", "not JSON", { headers: own, msgID: "id-1" });
    await invoke();
    const [letter] = await deadLetters();
    expect(letter?.header.get("X-Trace")).toBe("abc");
    expect(letter?.header.get("Nats-Expected-Stream")).toBe("");
    expect(letter?.header.get("Sortie-Message-Id")).toBe("id-1");
  });

  it("fits the server's max_payload with its story: its own headers give way, then the error's text", async () => {
    const { js, invoke } = await start(create().on(consumer(), () => {}));
    const limit = 1024 * 1024;
    for (const spare of [5_000, 800, 450]) {
      const own = headers();
      own.set("X-Small", "kept");
      own.set("X-Large", "x".repeat(spare - 100));
      await js.publish("jobs.a", new Uint8Array(limit - spare).fill(120), { headers: own });
    }
    expect((await invoke()).consumers[0]).toMatchObject({ pulled: 3, deadLettered: 3 });
    const letters = (await deadLetters()).toSorted((a, b) => Number(b?.data.length) - Number(a?.data.length));
    expect(letters.map((letter) => letter?.data.length)).toEqual([limit - 450, limit - 800, limit - 5_000]);
    expect(letters.map((letter) => letter?.header.get("Sortie-Reason"))).toEqual(Array(3).fill("undecodable"));
    const [tight, , roomy] = letters.map((letter) => letter?.header);
    expect(roomy?.get("X-Small")).toBe("kept");
    expect(roomy?.get("X-Large")).toBe("");
    expect(roomy?.get("Sortie-Error")).toMatch(/is not JSON in UTF-8/);
    expect(tight?.get("Sortie-Error").length).toBeLessThan(150);
  });

  it.each([
    ["a name with a space", "X A: 1"],
    ["a name that is not ASCII", "ключ: 1"],
    ["a line break in a value", "X-A: a\nb"],
    ["no colon", "broken"],
  ])("goes there with headers that no client can read: %s", async (_, header) => {
    const { invoke, server } = await start(create().on(consumer(), () => {}));
    await publishRaw(server.tcpUrl, "jobs.a", `NATS/1.0\r\n${header}\r\n\r\n`, "not JSON");
    expect((await invoke()).consumers[0]).toMatchObject({ pulled: 1, deadLettered: 1 });
    expect((await deadLetters())[0]?.string()).toBe("not JSON");
  });

  it("keeps its reason, however often the dead letter was refused before", async () => {
    const { js, invoke } = await start(create().on(consumer(), () => {}));
    await system.jsm.streams.delete("DEAD");
    await js.publish("jobs.a", "not JSON");
    await expect.poll(async () => (await invoke()) && system.events.length, { interval: 50 }).toBe(5);
    await system.jsm.streams.add({ name: "DEAD", subjects: ["dead.>"] });
    await expect.poll(async () => (await invoke()).consumers[0]?.deadLettered, { interval: 50 }).toBe(1);
    expect((await deadLetters())[0]?.header.get("Sortie-Reason")).toBe("undecodable");
  });

  it("keeps a header's every value", async () => {
    const { js, invoke } = await start(create().on(consumer(), () => {}));
    const own = headers();
    own.append("X-A", "1");
    own.append("X-A", "2");
    await js.publish("jobs.a", "not JSON", { headers: own });
    await invoke();
    expect((await deadLetters())[0]?.header.values("X-A")).toEqual(["1", "2"]);
  });

  it("is retried where only its schema fails to answer", async () => {
    let asked = 1;
    const flaky: Schema<{ n: number }> = {
      "~standard": {
        version: 1,
        vendor: "test",
        async validate(value) {
          asked += 1;
          if (asked === 2) throw new Error("the schema's own look-up failed");
          return { value: value as { n: number } };
        },
      },
    };
    const stream = defineStream("FLAKY", { subjects: { flaky } });
    const worker = defineConsumer(stream, "worker", { retry: base.retry, deadLetter: "dead.flaky" });
    const { publish, settle, events } = await start(createApp({ streams: [stream, dead] }).on(worker, () => {}));
    await publish("flaky", { n: 1 });
    await settle();
    expect(events).toMatchObject([{ event: "retried", error: expect.stringContaining("look-up failed") }]);
    expect(await left("DEAD")).toBe(0);
  });
});

describe("dead-lettering", () => {
  it("works within the same stream", async () => {
    const stream = defineStream("ONE", {
      subjects: { "one.job": Job },
      captures: ["one.dead"],
      retention: "workqueue",
    });
    const worker = defineConsumer(stream, "worker", { deadLetter: "one.dead" });
    const { publish, invoke } = await start(
      createApp({ streams: [stream] }).on(worker, () => {
        throw new NonRetriableError("no");
      }),
    );
    await publish("one.job", { n: 1 }, "same-id");
    await invoke();
    expect(await left("ONE")).toBe(1);
    expect((await system.jsm.streams.getMessage("ONE", { seq: 2 }))?.subject).toBe("one.dead");
  });

  it("loses nothing where it is refused: the message is retried, and dead-lettered once it can be", async () => {
    const { publish, invoke, settle, events } = await start(
      create().on(consumer(), () => {
        throw new NonRetriableError("no");
      }),
    );
    await system.jsm.streams.delete("DEAD");
    await publish("jobs.a", { n: 1 });
    expect((await invoke()).consumers[0]).toMatchObject({ retried: 1, deadLettered: 0 });
    expect(events[0]).toMatchObject({ event: "retried", error: expect.stringContaining("reached no stream") });
    expect(await left()).toBe(1);
    await system.jsm.streams.add({ name: "DEAD", subjects: ["dead.>"] });
    await settle();
    expect(await left()).toBe(0);
    expect(await deadLetters()).toHaveLength(1);
  });

  it("stores one letter even where the termination was lost after it", async () => {
    const { publish, invoke } = await start(
      create().on(consumer({ ackWait: "1s" }), () => {
        throw new NonRetriableError("no");
      }),
    );
    await publish("jobs.a", { n: 1 });
    const connect = async () => losing(await system.connect(), isAck);
    expect((await invoke({ connect, budgetMs: 1_000 })).consumers[0]).toMatchObject({
      deadLettered: 0,
      unconfirmed: 1,
    });
    await expect.poll(async () => (await invoke()).consumers[0]?.deadLettered, { timeout: 10_000 }).toBe(1);
    expect(await deadLetters()).toHaveLength(1);
  });

  it("takes a message of a stream that was made anew for another one", async () => {
    const app = create().on(consumer(), () => {
      throw new NonRetriableError("no");
    });
    const { publish, invoke } = await start(app);
    for (const round of [1, 2]) {
      expect(await publish("jobs.a", { n: round })).toBe(1);
      await invoke();
      await system.jsm.streams.delete("JOBS");
      const connection = await system.connect();
      await apply(connection, { streams: app.streams, consumers: app.bindings.map((binding) => binding.consumer) });
      await connection.close();
    }
    expect((await deadLetters()).map((letter) => letter?.json())).toEqual([{ n: 1 }, { n: 2 }]);
  });

  it("never comes to a message that was delivered, however often, and never started", async () => {
    const attempts: number[] = [];
    const { publish, invoke } = await start(
      create().on(consumer({ ackWait: "1s" }), ({ attempt }) => void attempts.push(attempt)),
    );
    await publish("jobs.a", { n: 1 });
    const lost = await system.js.consumers.get("JOBS", "worker");
    for (let time = 1; time <= 3; time++) await lost.next({ expires: 5_000 }); // delivered, and never heard of again
    await expect.poll(async () => (await invoke()).consumers[0]?.acked, { timeout: 10_000 }).toBe(1);
    expect(attempts).toEqual([1]);
    expect(await deadLetters()).toEqual([]);
  });
});

describe("what a handler publishes", () => {
  it("is stored before the ack, once, however often the message is redelivered", async () => {
    let fail = true;
    const { publish, settle } = await start(
      create().on(consumer(), async ({ data }, context) => {
        await context.publish("results.a", { n: data.n * 10 });
        void context.publish("results.a", { n: data.n * 10 + 1 });
        if (fail) {
          fail = false;
          throw new Error("after publishing");
        }
      }),
    );
    await publish("jobs.a", { n: 1 });
    await settle();
    const subjects = (await system.jsm.streams.info("JOBS", { subjects_filter: ">" })).state.subjects;
    expect(subjects).toEqual({ "results.a": 2 });
  });

  it("is stored once even where the ack was lost after it", async () => {
    const { publish, invoke, settle } = await start(
      create().on(consumer({ ackWait: "1s" }), (_, context) => context.publish("results.a", { n: 1 })),
    );
    await publish("jobs.a", { n: 1 });
    const { consumers } = await invoke({ connect: async () => losing(await system.connect(), isAck), budgetMs: 2_000 });
    expect(consumers[0]).toMatchObject({ acked: 0, unconfirmed: 1 });
    await expect.poll(async () => (await invoke()).consumers[0]?.acked, { timeout: 10_000 }).toBe(1);
    await settle();
    expect((await system.jsm.streams.info("JOBS", { subjects_filter: ">" })).state.subjects).toEqual({
      "results.a": 1,
    });
  });

  it("is kept apart from what another consumer publishes for the same message", async () => {
    const stream = defineStream("BOTH", { subjects: { both: Job } });
    const handler: Handler<typeof stream.schemas, "both", typeof jobs> = (_, { publish }) =>
      publish("results.a", { n: 1 });
    const app = createApp({ streams: [jobs, stream, dead] })
      .on(defineConsumer(stream, "one", { deadLetter: "dead.x" }), handler)
      .on(defineConsumer(stream, "two", { deadLetter: "dead.x" }), handler);
    const { publish, invoke } = await start(app);
    await publish("both", { n: 0 });
    await invoke();
    expect(await left()).toBe(2);
  });

  it("is complete after a retry that publishes in another order", async () => {
    const out = defineStream("OUT", { subjects: { "out.a": z.string(), "out.b": z.string() } });
    const worker = consumer({ retry: { attempts: 3, backoff: fixed(20) } });
    const app = createApp({ streams: [jobs, out, dead] }).on(worker, async ({ attempt }, { publish }) => {
      for (const subject of attempt === 1 ? (["out.a", "out.b"] as const) : (["out.b", "out.a"] as const))
        await publish(subject, subject);
    });
    const { publish, invoke, settle } = await start(app);
    await publish("jobs.a", { n: 1 });
    const connect = async () => losing(await system.connect(), (subject) => subject === "out.b");
    await invoke({ connect, budgetMs: 1_000 });
    await settle();
    expect((await system.jsm.streams.info("OUT", { subjects_filter: ">" })).state.subjects).toEqual({
      "out.a": 1,
      "out.b": 1,
    });
  });

  it("is refused once the handler has ended", async () => {
    const late = Promise.withResolvers<unknown>();
    const { publish, settle } = await start(
      create().on(consumer(), (_, context) => {
        setImmediate(() => void context.publish("results.a", { n: 1 }).catch(late.resolve));
      }),
    );
    await publish("jobs.a", { n: 1 });
    await settle();
    expect(await late.promise).toMatchObject({ message: expect.stringContaining("The handler has ended") });
    expect(await left()).toBe(0);
  });

  it.each(["a\nb", "", "x".repeat(256), "\ud800"])(
    "is refused with the id %j, which no header can carry",
    async (id) => {
      const { publish, settle, events } = await start(
        create().on(consumer(), (_, context) => context.publish("results.a", { n: 1 }, { id })),
      );
      await publish("jobs.a", { n: 1 });
      await settle();
      expect(events.at(-1)).toMatchObject({
        event: "dead-lettered",
        error: expect.stringContaining("expected an id of 1 to 255 characters"),
      });
    },
  );

  it("fails the message where it is refused, also where the handler did not wait for it", async () => {
    const { publish, settle, events } = await start(
      create().on(consumer(), (_, context) => {
        void context.publish("results.a", { n: "wrong" as unknown as number });
      }),
    );
    await publish("jobs.a", { n: 1 });
    await settle();
    expect(events.map(({ event }) => event)).toEqual(["retried", "retried", "dead-lettered"]);
    expect(events[2]).toMatchObject({
      reason: "attempts-exhausted",
      error: expect.stringContaining('schema of "results.a"'),
    });
  });
});

describe("time", () => {
  it("ends the invocation before its deadline, whatever the handlers do, and counts it as an attempt", async () => {
    const heard: unknown[] = [];
    const { publish, invoke } = await start(
      create().on(consumer({ concurrency: 2 }), ({ data }, { signal, remaining }) => {
        heard.push(remaining());
        if (data.n === 1) return new Promise(() => {}); // never looks at the signal
        return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
      }),
    );
    await publish("jobs.a", { n: 1 });
    await publish("jobs.a", { n: 2 });
    await publish("jobs.a", { n: 3 }); // no handler was free for it: it is not touched
    const started = Date.now();
    const { consumers } = await invoke({ budgetMs: 1_500 });
    expect(Date.now() - started).toBeLessThan(1_500);
    expect(consumers[0]).toMatchObject({ pulled: 2, retried: 2, unconfirmed: 0, ended: "budget" });
    expect(await system.jsm.consumers.info("JOBS", "worker")).toMatchObject({ num_pending: 1, num_ack_pending: 2 });
    expect(heard.every((ms) => Number(ms) > 500 && Number(ms) < 1_500)).toBe(true);
  });

  it("tells a handler by its signal, while there is time to end", async () => {
    const { publish, invoke } = await start(
      create().on(consumer(), async (_, { signal }) => {
        if (signal.aborted) throw new Error("aborted from the start");
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
      }),
    );
    await publish("jobs.a", { n: 1 });
    expect((await invoke({ budgetMs: 1_500 })).consumers[0]).toMatchObject({ acked: 1, retried: 0, unconfirmed: 0 });
  });

  it("hands back what was pulled and not started, and charges it nothing", async () => {
    const starts: string[] = [];
    const { publish, invoke } = await start(
      create().on(consumer({ concurrency: 1 }), async ({ data, attempt }, { signal }) => {
        starts.push(`${data.n}, attempt ${attempt}`);
        if (data.n === 4 && attempt === 1) await new Promise((resolve) => signal.addEventListener("abort", resolve));
      }),
    );
    for (let n = 1; n <= 6; n++) await publish("jobs.a", { n }); // the first three are quick: the others are pulled ahead
    const { consumers } = await invoke({ budgetMs: 2_000 });
    expect(consumers[0]).toMatchObject({ pulled: 6, acked: 4, returned: 2, unconfirmed: 0, ended: "budget" });
    expect(starts).toHaveLength(4);
    expect((await invoke()).consumers[0]).toMatchObject({ pulled: 2, acked: 2 });
    expect(starts.slice(4)).toEqual(["5, attempt 1", "6, attempt 1"]);
  });

  it("that is all used up is no failure, and leaves nothing outstanding behind", async () => {
    const { publish, invoke, server } = await start(create().on(consumer({ concurrency: 50 }), () => {}));
    for (let round = 0; round < 10; round++)
      await Promise.all(Array.from({ length: 200 }, (_, n) => publish("jobs.a", { n })));
    await using proxy = await startProxy(server.url, 20);
    const { consumers } = await invoke({ connect: (ms) => connect({ url: proxy.url }, ms), budgetMs: 800 });
    expect(consumers[0]).toMatchObject({ ended: "budget", unconfirmed: 0 });
    expect(consumers[0]?.pulled).toBe((consumers[0]?.acked ?? 0) + (consumers[0]?.returned ?? 0));
    expect(await system.jsm.consumers.info("JOBS", "worker")).toMatchObject({
      num_ack_pending: consumers[0]?.returned ?? -1,
    });
  });

  it("is not spent on an answer that is lost", async () => {
    const { publish, invoke } = await start(create().on(consumer(), () => {}));
    await publish("jobs.a", { n: 1 });
    const { ms, consumers } = await invoke({
      connect: async () => losing(await system.connect(), isAck),
      budgetMs: 60_000,
    });
    expect(consumers[0]).toMatchObject({ acked: 0, unconfirmed: 1 });
    expect(ms).toBeLessThan(10_000);
  });

  it("is refused where its end is no number, and may be without end", async () => {
    const { publish, invoke } = await start(
      create().on(consumer(), ({ data }, { publish, remaining }) => {
        expect(remaining()).toBe(Infinity);
        return publish("results.a", data);
      }),
    );
    await publish("jobs.a", { n: 1 });
    await expect(invoke({ deadline: NaN })).rejects.toMatchObject({ code: "invalid-option" });
    expect((await invoke({ deadline: Infinity })).consumers[0]).toMatchObject({ acked: 1, ended: "drained" });
    expect(await left()).toBe(1); // what it published
  });

  it("publishes nothing for a handler that was left behind", async () => {
    const late = Promise.withResolvers<void>();
    const { publish, invoke } = await start(
      create().on(consumer(), async (_, context) => {
        await new Promise((resolve) => setTimeout(resolve, 1_200));
        await context.publish("results.a", { n: 1 }).catch(late.reject);
      }),
    );
    await publish("jobs.a", { n: 1 });
    await invoke({ budgetMs: 1_000 });
    await expect(late.promise).rejects.toThrow(/time is over/);
    expect(await left()).toBe(1);
  });
});

describe("what is not there", () => {
  it("is an error that names the command to run, for each consumer, while the others go on", async () => {
    const other = defineConsumer(jobs, "other", { ...base, filter: "jobs.b" as "jobs.a" });
    const { publish, invoke } = await start(
      create()
        .on(consumer(), () => {})
        .on(other, () => {}),
    );
    await system.jsm.consumers.delete("JOBS", "other");
    await publish("jobs.a", { n: 1 });
    const { consumers } = await invoke();
    expect(consumers[0]).toMatchObject({ acked: 1, ended: "drained" });
    expect(consumers[1]).toMatchObject({
      ended: "failed",
      error: expect.stringMatching(/"other" of stream "JOBS" does not exist.*npx sortie apply/),
    });
    await system.jsm.streams.delete("JOBS");
    expect((await invoke()).consumers.map(({ ended }) => ended)).toEqual(["failed", "failed"]);
  });

  it("does not keep an invocation: empty, saturated and paused consumers answer at once", async () => {
    const { publish, invoke } = await start(create().on(consumer({ maxAckPending: 1 }), () => {}));
    expect((await invoke()).consumers[0]).toMatchObject({ pulled: 0, ended: "drained" });
    await publish("jobs.a", { n: 1 });
    await publish("jobs.a", { n: 2 });
    await (await system.js.consumers.get("JOBS", "worker")).next({ expires: 5_000 }); // holds the only place
    expect((await invoke()).consumers[0]).toMatchObject({ pulled: 0, ended: "held" });
    await system.jsm.consumers.pause("JOBS", "worker", new Date(Date.now() + 60_000));
    const { ms, consumers } = await invoke();
    expect(consumers[0]).toMatchObject({ pulled: 0, ended: "held" });
    expect(ms).toBeLessThan(1_000);
  });
});

describe("a consumer deleted, or a server gone, in the middle", () => {
  it("is known at once, and named, though nobody answers for what its handlers have done", async () => {
    const { publish, invoke } = await start(
      create().on(consumer({ concurrency: 4 }), async ({ data }) => {
        if (data.n === 1) await system.jsm.consumers.delete("JOBS", "worker");
        await new Promise((resolve) => setTimeout(resolve, 300));
      }),
    );
    for (let n = 1; n <= 4; n++) await publish("jobs.a", { n });
    let asked = 0;
    const { consumers } = await invoke({
      async connect() {
        const connection = await system.connect();
        const request: typeof connection.request = (subject, ...rest) => {
          if (isAck(subject)) asked += 1;
          return connection.request(subject, ...rest);
        };
        return altered(connection, { request });
      },
    });
    expect(consumers[0]).toMatchObject({
      acked: 0,
      unconfirmed: 4,
      ended: "failed",
      error: expect.stringMatching(/"worker" of stream "JOBS" does not exist.*npx sortie apply/),
    });
    expect(asked).toBeLessThanOrEqual(4); // each was asked for once, and not again and again for a leader
  });

  it("is told in the report, and the handled message comes again", async () => {
    const { publish, invoke, server } = await start(create().on(consumer(), () => server.kill("SIGKILL")));
    await publish("jobs.a", { n: 1 });
    const started = Date.now();
    const { consumers } = await invoke({ budgetMs: 4_000 });
    expect(Date.now() - started).toBeLessThan(4_000);
    expect(consumers[0]).toMatchObject({ pulled: 1, acked: 0, unconfirmed: 1 });
    await server.start();
  });
});

describe("whatever a handler or a schema does", () => {
  it.each<[string, () => unknown]>([
    ["nothing", () => Promise.reject(undefined)],
    ["an object without a prototype", () => Promise.reject(Object.create(null))],
    [
      "an error that pretends to be a decision",
      () => Promise.reject(Object.assign(new Error(), { [Symbol.for("sortie.decision")]: undefined })),
    ],
    ["a symbol", () => Promise.reject(Symbol("s"))],
    [
      "an error whose message throws",
      () => Promise.reject(Object.defineProperty(new Error(), "message", { get: () => raise() })),
    ],
  ])("throwing %s is a failure like any other", async (_, handler) => {
    const { publish, settle } = await start(create().on(consumer(), handler));
    await publish("jobs.a", { n: 1 });
    await settle();
    expect((await deadLetters())[0]?.header.get("Sortie-Reason")).toBe("attempts-exhausted");
    expect(await left()).toBe(0);
  });

  it("a schema that never answers costs an attempt, not the invocation", async () => {
    const hanging: Schema<string> = {
      "~standard": { version: 1, vendor: "test", validate: () => new Promise(() => {}) },
    };
    const stream = defineStream("HANGING", { subjects: { hanging } });
    const worker = defineConsumer(stream, "worker", { retry: base.retry, deadLetter: "dead.hanging" });
    const { publish, invoke } = await start(createApp({ streams: [stream, dead] }).on(worker, () => {}));
    await publish("hanging", "x");
    const { consumers, ms } = await invoke({ budgetMs: 1_000 });
    expect(consumers[0]).toMatchObject({ retried: 1, unconfirmed: 0 });
    expect(ms).toBeLessThan(1_000);
  });

  it("a schema that answers with a promise of its own making is waited for", async () => {
    const seen: unknown[] = [];
    const lazily: Schema<string> = {
      "~standard": {
        version: 1,
        vendor: "test",
        validate(value) {
          const then: Then = (resolve) => void setTimeout(resolve, 10, { value: `${value}!` });
          return { then } as never;
        },
      },
    };
    const stream = defineStream("LAZILY", { subjects: { lazily } });
    const worker = defineConsumer(stream, "worker", { retry: base.retry, deadLetter: "dead.lazily" });
    const { publish, invoke } = await start(
      createApp({ streams: [stream, dead] }).on(worker, ({ data }) => void seen.push(data)),
    );
    await publish("lazily", "x");
    expect((await invoke()).consumers[0]).toMatchObject({ acked: 1 });
    expect(seen).toEqual(["x!"]);
  });

  it.each<[string, (then: Then) => unknown]>([
    ["a function", (then) => Object.assign(() => {}, { then })],
    ["an object", (then) => ({ then })],
  ])("%s with a `then` is waited for, and fails the message where it rejects", async (_, make) => {
    let over = 0;
    const answers = [
      make((resolve) => setTimeout(() => resolve(++over), 20)),
      make((_, reject) => setTimeout(reject, 20, new Error("in the end"))),
    ];
    const { publish, invoke } = await start(create().on(consumer(), ({ data }) => answers[data.n]));
    for (const n of answers.keys()) await publish("jobs.a", { n });
    expect((await invoke()).consumers[0]).toMatchObject({ acked: 1, retried: 1 });
    expect(over).toBe(1);
    expect(system.events).toMatchObject([{ event: "retried", sequence: 2, error: "Error: in the end" }]);
  });

  it("a server that is gone while a handler is kept alive ends nothing but its message", async () => {
    const { publish, invoke, server } = await start(
      create().on(consumer({ ackWait: "1s" }), async () => {
        await server.kill("SIGKILL");
        await new Promise((resolve) => setTimeout(resolve, 1_200)); // two heartbeats later
      }),
    );
    await publish("jobs.a", { n: 1 });
    expect((await invoke({ budgetMs: 4_000 })).consumers[0]).toMatchObject({ acked: 0, unconfirmed: 1 });
  });
});

type Then = (resolve: (value?: unknown) => void, reject: (reason: unknown) => void) => void;

function raise(): never {
  throw new Error("from the getter");
}

describe("a network that is gone in the middle", () => {
  it("does not hold an invocation beyond its deadline", async () => {
    let freeze = () => {};
    const { publish, invoke, server } = await start(create().on(consumer(), () => freeze()));
    await using proxy = await startProxy(server.url);
    freeze = proxy.freeze;
    await publish("jobs.a", { n: 1 });
    const started = Date.now();
    const { consumers } = await invoke({ budgetMs: 2_000, connect: (ms) => connect({ url: proxy.url }, ms) });
    expect(Date.now() - started).toBeLessThan(2_050);
    expect(consumers[0]).toMatchObject({ pulled: 1, acked: 0, unconfirmed: 1 });
    expect(await left()).toBe(1);
  });
});
