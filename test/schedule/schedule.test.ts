import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed, type ScheduleOptions } from "../../src/index.ts";
import { release } from "../../src/schedule/release.ts";
import { altered, losing } from "../support/connections.ts";
import { type System, startSystem } from "../support/system.ts";

const Task = z.object({ id: z.string() });
const tasks = defineStream("TASKS", { subjects: { "tasks.new": Task, "tasks.later": Task }, maxAge: "30d" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const options = { deadLetter: "dead.tasks", retry: { attempts: 2, backoff: fixed(20) } } as const;
const planner = defineConsumer(tasks, "planner", { filter: "tasks.new", ackWait: "1s", ...options });
const doer = defineConsumer(tasks, "doer", { filter: "tasks.later", ...options });

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

interface Fired {
  id: string;
  data: string;
  at: number;
}

/** A planner that schedules whatever it is given as `when` says, and a doer that remembers. */
async function start(when: (id: string) => ScheduleOptions, failFirst = false) {
  const fired: Fired[] = [];
  const app = createApp({ streams: [tasks, dead] })
    .on(planner, async ({ data, attempt }, { schedule }) => {
      await schedule("tasks.later", data, when(data.id));
      if (failFirst && attempt === 1) throw new Error("after scheduling");
    })
    .on(doer, ({ id, data, publishedAt }) => void fired.push({ id, data: data.id, at: publishedAt.getTime() }));
  system = await startSystem(app);
  return { fired, app };
}

const waiting = async () =>
  Object.keys((await system.jsm.streams.info("TASKS", { subjects_filter: "sortie.>" })).state.subjects ?? {});

describe("a schedule from a handler", () => {
  it("is released on time, once, with its id, and never early", async () => {
    const due = Date.now() + 1_500;
    const { fired } = await start(() => ({ at: new Date(due), id: "reminder 1/a.*" }));
    await system.publish("tasks.new", { id: "1" });
    await system.invoke();
    expect(await waiting()).toEqual(["sortie.schedule.TASKS.reminder%201%2Fa%2E%2A"]);
    expect(fired).toEqual([]);
    await expect.poll(async () => (await system.invoke()) && fired.length, { interval: 50, timeout: 5_000 }).toBe(1);
    expect(fired[0]).toMatchObject({ id: "reminder 1/a.*", data: "1" });
    expect((fired[0]?.at ?? 0) - due).toBeGreaterThanOrEqual(0);
    expect((fired[0]?.at ?? 0) - due).toBeLessThan(1_000);
    expect(await waiting()).toEqual([]);
    await system.settle();
    expect(fired).toHaveLength(1);
  });

  it("is stored once, however often its message is redelivered, and waits for the handler's success", async () => {
    const { fired } = await start(() => ({ in: "1h" }), true);
    await system.publish("tasks.new", { id: "1" });
    await system.invoke();
    expect(await waiting()).toEqual([]);
    await system.settle();
    expect(await waiting()).toHaveLength(1);
    expect(fired).toEqual([]);
  });

  it("is replaced by another with its id, and left alone by others", async () => {
    let times = 0;
    const { fired } = await start((id) => ({ in: times++ === 0 ? "1h" : "100ms", id }));
    await system.publish("tasks.new", { id: "same" });
    await system.invoke();
    await system.publish("tasks.new", { id: "same" });
    await system.invoke();
    await expect.poll(async () => (await system.invoke()) && fired.length, { interval: 50, timeout: 5_000 }).toBe(1);
    expect(await waiting()).toEqual([]);
  });

  it("may be for the past: it is released at once", async () => {
    const { fired } = await start(() => ({ at: "2020-01-01T00:00:00Z" }));
    await system.publish("tasks.new", { id: "1" });
    await system.invoke();
    await expect.poll(async () => (await system.invoke()) && fired.length, { interval: 50, timeout: 5_000 }).toBe(1);
  });

  it.each([
    [
      "a time that the stream would not keep it for",
      { in: "31d" },
      /would be deleted before it is due, or within a second of that: stream "TASKS" keeps messages for 2592000 s/,
    ],
    [
      "a malformed time",
      { at: "tomorrow" },
      /expected `at` to be a Date or an RFC 3339 time with its offset.*got "tomorrow"/,
    ],
    ["no time", {} as ScheduleOptions, /expected one of `in`, `at`, `every` and `cron`, got none of them/],
    ["a negative delay", { in: -5 }, /expected milliseconds or a duration/],
    ["a time beyond ten years", { in: "4000d" }, /expected a time within ten years/],
    ["an empty id", { in: "1s", id: "" }, /expected an id of 1 to 255 characters/],
    ["an endless id", { in: "1s", id: "é".repeat(700) }, /expected an id of 1 to 255 characters/],
    ["half a character", { in: "1s", id: "\ud800" }, /expected an id of 1 to 255 characters/],
    ["a time without its offset", { at: "2030-01-01T10:00:00" }, /RFC 3339 time with its offset/],
    ["a time that JavaScript guesses", { at: "apples 5" }, /RFC 3339 time with its offset/],
  ] satisfies [string, ScheduleOptions, RegExp][])("fails the message for %s", async (_, when, error) => {
    await start(() => when);
    await system.publish("tasks.new", { id: "1" });
    await system.settle();
    expect(system.events.at(-1)).toMatchObject({ event: "dead-lettered", error: expect.stringMatching(error) });
    expect(await waiting()).toEqual([]);
  });
});

describe("a schedule that must not be", () => {
  it("does not touch the others, whatever its id", async () => {
    await start((id) => ({ in: "1h", id }));
    for (const id of ["a", "b", "*", ">", "a.b"]) {
      await system.publish("tasks.new", { id });
      await system.invoke();
    }
    expect(await waiting()).toHaveLength(5);
  });

  it("is stored once where its message comes again after it was released", async () => {
    const { fired } = await start(() => ({ in: "50ms" }));
    await system.publish("tasks.new", { id: "1" });
    const acks = (subject: string) => subject.startsWith("$JS.ACK.TASKS.planner");
    await system.invoke({ connect: async () => losing(await system.connect(), acks), budgetMs: 1_000 });
    await expect.poll(async () => (await system.invoke()) && fired.length, { interval: 50, timeout: 5_000 }).toBe(1);
    await expect
      .poll(
        async () =>
          (await system.jsm.consumers.info("TASKS", "planner")).num_ack_pending +
          (await system.invoke()).consumers.length,
        { timeout: 5_000 },
      )
      .toBe(2);
    await expect.poll(waiting).toEqual([]); // a second one would be released by then
    await system.settle();
    expect(fired).toHaveLength(1);
  });

  it.each([
    [
      "beyond ten years",
      { at: new Date("+020000-01-01T00:00:00Z") },
      {},
      /at \+020000-01-01T00:00:00.000Z: expected a time within ten years/,
    ],
    [
      "on a server that would store it as a message, without a stream for those",
      { in: "1h" },
      { version: "2.11.9" },
      /no stream.*npx sortie apply/i,
    ],
  ] as const)("is refused %s", async (_, when, info, error) => {
    const unlimited = defineStream("UNLIMITED", { subjects: { "u.new": Task, "u.later": Task } });
    const worker = defineConsumer(unlimited, "w", { filter: "u.new", ...options });
    const app = createApp({ streams: [unlimited, dead] }).on(worker, ({ data }, { schedule }) =>
      schedule("u.later", data, when),
    );
    system = await startSystem(app);
    await system.jsm.streams.delete("SORTIE_SCHEDULES");
    await system.publish("u.new", { id: "1" });
    const connect = async () => {
      const connection = await system.connect();
      return altered(connection, { info: { ...connection.info, ...info } as NonNullable<typeof connection.info> });
    };
    await system.invoke({ connect });
    expect(system.events[0]).toMatchObject({ event: "retried", error: expect.stringMatching(error) });
  });

  it("is refused where the stream takes none", async () => {
    const without = defineStream("WITHOUT", { subjects: { "w.new": Task }, schedules: false });
    const worker = defineConsumer(without, "w", options);
    const app = createApp({ streams: [without, dead] }).on(worker, ({ data }, { schedule }) =>
      schedule("w.new", data, { in: "1h" }),
    );
    system = await startSystem(app);
    await system.publish("w.new", { id: "1" });
    await system.invoke();
    expect(system.events[0]).toMatchObject({ error: expect.stringContaining("is defined with `schedules: false`") });
  });
});

describe("the scheduler invocation", () => {
  it("counts what waits, and says what keeps schedules from being released", async () => {
    const { app } = await start((id) => ({ in: "1h", id }));
    for (const id of ["a", "b", "c"]) await system.publish("tasks.new", { id });
    await system.invoke();
    const connection = await system.connect();
    expect(await release(connection, app.streams, { deadline: Date.now() + 1_000 })).toEqual({
      streams: [{ stream: "TASKS", onServer: 3 }],
    });
    await system.jsm.streams.delete("TASKS");
    const error = expect.stringMatching(/stream not found/);
    expect(await release(connection, app.streams, { deadline: Date.now() + 1_000 })).toEqual({
      streams: [{ stream: "TASKS", error }],
    });
    await system.jsm.streams.add({ name: "TASKS", subjects: ["tasks.>"] });
    expect(await release(connection, app.streams, { deadline: Date.now() + 1_000 })).toEqual({
      streams: [{ stream: "TASKS", error: expect.stringMatching(/does not allow them.*npx sortie apply/) }],
    });
    await connection.close();
  });
});
