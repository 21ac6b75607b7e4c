import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed, type ScheduleOptions } from "../../src/index.ts";
import { release } from "../../src/schedule/release.ts";
import { scheduleSubject } from "../../src/schedule/schedule.ts";
import { type System, startSystem } from "../support/system.ts";

const Task = z.object({ id: z.string() });
const tasks = defineStream("TASKS", { subjects: { "tasks.new": Task, "tasks.later": Task }, maxAge: "30d" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const options = { deadLetter: "dead.tasks", retry: { attempts: 2, backoff: fixed(20) } } as const;
const planner = defineConsumer(tasks, "planner", { filter: "tasks.new", ...options });
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
    expect(await waiting()).toEqual([scheduleSubject("TASKS", "reminder 1/a.*")]);
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
      /would be deleted before it is due: stream "TASKS" keeps messages for 2592000 s/,
    ],
    ["a malformed time", { at: "tomorrow" }, /expected `at` to be a Date or an RFC 3339 time, got "tomorrow"/],
    ["no time", {} as ScheduleOptions, /expected either `in` or `at`/],
    ["a negative delay", { in: -5 }, /expected milliseconds or a duration/],
    ["an empty id", { in: "1s", id: "" }, /id must not be empty/],
  ] satisfies [string, ScheduleOptions, RegExp][])("fails the message for %s", async (_, when, error) => {
    await start(() => when);
    await system.publish("tasks.new", { id: "1" });
    await system.settle();
    expect(system.events.at(-1)).toMatchObject({ event: "dead-lettered", error: expect.stringMatching(error) });
    expect(await waiting()).toEqual([]);
  });
});

describe("the scheduler invocation", () => {
  it("counts what waits, and says what keeps schedules from being released", async () => {
    const { app } = await start((id) => ({ in: "1h", id }));
    for (const id of ["a", "b", "c"]) await system.publish("tasks.new", { id });
    await system.invoke();
    const connection = await system.connect();
    expect(await release(connection, app.streams, 1_000)).toEqual({
      releasedBy: "server",
      streams: [{ stream: "TASKS", scheduled: 3 }],
    });
    await system.jsm.streams.delete("TASKS");
    await expect(release(connection, app.streams, 1_000)).rejects.toThrow(/stream not found/);
    await system.jsm.streams.add({ name: "TASKS", subjects: ["tasks.>"] });
    await expect(release(connection, app.streams, 1_000)).rejects.toThrow(/does not allow them.*npx sortie apply/);
    await connection.close();
  });
});
