import { describe, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, type StreamOptions } from "../../src/index.ts";
import { disconnect } from "../../src/nats/connection.ts";
import { release } from "../../src/schedule/release.ts";
import { createSchedules } from "../../src/schedule/schedules.ts";
import { programOf, type ServerVersion } from "../support/servers.ts";
import { startSystem } from "../support/system.ts";

const Task = z.object({ n: z.number() });
const planned = defineStream("PLANNED", { subjects: { "plan.it": Task }, captures: ["dead.>"] });
const planning = defineConsumer(planned, "planning", { filter: "plan.it", deadLetter: "dead.plan" });

type Kind = Pick<StreamOptions<never>, "retention" | "maxMessages" | "maxBytes" | "maxAge" | "schedules" | "storage">;

/** A handler of one stream that schedules into another, and one of that. */
async function start(kind: Kind, version: ServerVersion) {
  const tasks = defineStream("TASKS", { ...kind, subjects: { "tasks.do": Task } });
  const doing = defineConsumer(tasks, "doing", { deadLetter: "dead.tasks" });
  const done: number[] = [];
  const app = createApp({ streams: [planned, tasks] })
    .on(planning, ({ data }, { schedule }) => schedule("tasks.do", data, { in: "600ms", id: `task ${data.n}` }))
    .on(doing, ({ data }) => void done.push(data.n));
  const system = await startSystem(app, { binary: programOf(version) });
  const tick = async (lingerMs: number) => {
    const connection = await system.connect();
    try {
      return (await release(connection, [tasks], { deadline: Date.now() + lingerMs + 2_000, lingerMs })).streams[0];
    } finally {
      disconnect(connection);
    }
  };
  return { app, system, done, tick };
}

const kinds: Kind[] = [
  { retention: "limits" },
  { retention: "workqueue" },
  { retention: "workqueue", storage: "memory" },
  { retention: "workqueue", maxMessages: 100 },
  { retention: "limits", maxMessages: 100, maxBytes: 1_000_000 },
  { retention: "workqueue", maxAge: "1h", schedules: "function" },
];

describe.concurrent.each(["newest", "2.10", "2.9"] as const)("on nats-server %s", (version) => {
  it.for(kinds)("a handler schedules into another stream: %o", async (kind, { expect }) => {
    const { system, done, tick } = await start(kind, version);
    await using _ = system;
    await system.publish("plan.it", { n: 1 });
    await system.invoke();
    await tick(1_500);
    await expect.poll(async () => (await system.invoke()) && done, { timeout: 5_000 }).toEqual([1]);
    await system.settle();
    expect(done).toEqual([1]);
  });
});

describe.concurrent("a stream that is full when a schedule is due", () => {
  it("has it when there is room again, and the report says why not before", async ({ expect }) => {
    const { app, system, tick } = await start({ retention: "workqueue", maxMessages: 1 }, "newest");
    await using _ = system;
    await system.publish("tasks.do", { n: 0 });
    const connection = await system.connect();
    const schedules = createSchedules(connection, app.streams);
    await schedules.schedule("tasks.do", { n: 1 }, { in: "100ms", id: "waits" });
    expect(await tick(500)).toMatchObject({ released: 0, error: expect.stringMatching(/maximum messages exceeded/) });
    await system.jsm.streams.purge("TASKS");
    await expect.poll(async () => (await tick(0))?.released, { timeout: 10_000, interval: 500 }).toBe(1);
    expect(await schedules.get("waits")).toMatchObject({ state: "released" });
    disconnect(connection);
  });
});

describe("what a stream would lose", () => {
  it("is refused with what to do", async ({ expect }) => {
    const { app, system } = await start({ retention: "limits", maxAge: "1h" }, "newest");
    await using _ = system;
    const connection = await system.connect();
    const schedules = createSchedules(connection, app.streams);
    await expect(schedules.schedule("tasks.do", { n: 1 }, { in: "2h" })).rejects.toThrow(
      /stream "TASKS" keeps messages for 3600 s \(maxAge\), its schedules among them\. Give the stream `schedules: "function"`/,
    );
    expect(() => defineStream("X", { subjects: { x: Task }, maxMessages: 1, schedules: true })).toThrow(
      /would push schedules out before they are due; leave them out, or set `schedules: "function"`/,
    );
    disconnect(connection);
  });
});
