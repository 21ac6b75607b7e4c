import { describe, it } from "vitest";
import * as z from "zod";
import { createApp, defineStream } from "../../src/index.ts";
import { disconnect } from "../../src/nats/connection.ts";
import { release } from "../../src/schedule/release.ts";
import { createSchedules } from "../../src/schedule/schedules.ts";
import { type System, startSystem } from "../support/system.ts";

const tasks = defineStream("TASKS", { subjects: { "tasks.later": z.number() }, schedules: "function" });
const app = createApp({ streams: [tasks] });

describe.concurrent("a note that is looked at for the second time", () => {
  it("is not taken away where its schedule has come back to it", async ({ expect }) => {
    await using system = await startSystem(app);
    const connection = await system.connect();
    const schedules = createSchedules(connection, [tasks]);
    const due = new Date(Date.now() + 2_500);
    const running = release(connection, [tasks], { deadline: Date.now() + 5_000, lingerMs: Infinity });
    await sleep(300); // it hears of what comes
    await schedules.schedule("tasks.later", 1, { at: due, id: "moved" });
    await schedules.schedule("tasks.later", 2, { in: "1h", id: "moved" });
    await sleep(due.getTime() - Date.now() - 150); // the note has been found to be over by now
    await schedules.schedule("tasks.later", 3, { at: due, id: "moved" });
    await running;
    await release(connection, [tasks], { deadline: Date.now() + 3_000 });
    const message = await system.jsm.streams.getMessage("TASKS", { last_by_subj: "tasks.later" });
    expect(message?.json()).toBe(3);
    expect((await system.jsm.streams.info("TASKS")).state.messages).toBe(1);
    disconnect(connection);
  });

  it("is not taken away where it is the one that its schedule comes to next", async ({ expect }) => {
    await using system = await startSystem(app);
    const connection = await system.connect();
    const schedules = createSchedules(connection, [tasks]);
    const made = Date.now();
    await schedules.schedule("tasks.later", 1, { every: "1s", id: "again", until: new Date(made + 2_500) });
    const { next = [] } = (await schedules.get("again")) ?? {};
    // a function has claimed the first, released it, noted the second, and died
    await claim(system);
    const running = release(connection, [tasks], { deadline: Date.now() + 9_000, lingerMs: Infinity });
    await sleep(300);
    await system.js.publish(noteOf(next[1] ?? new Date(0)), "");
    await running;
    await release(connection, [tasks], { deadline: Date.now() + 3_000 });
    const { state } = await system.jsm.streams.info("TASKS");
    expect(state.messages).toBe(2);
    expect(await schedules.get("again")).toMatchObject({ state: "released" });
    disconnect(connection);
  });
});

/** The schedule as it is when it is claimed; the note by which it was found is gone. */
async function claim({ js, jsm }: System): Promise<void> {
  const subject = "sortie.schedules.id.TASKS.again";
  const message = await jsm.streams.getMessage("SORTIE_SCHEDULES", { last_by_subj: subject });
  if (!message) throw new Error("there is no schedule");
  const { header: headers, data, seq } = message;
  headers.set("Sortie-Releasing", `${seq} 0`);
  headers.delete("Nats-Expected-Stream");
  await js.publish(subject, data, { headers });
  await jsm.streams.purge("SORTIE_SCHEDULES", { filter: "sortie.schedules.at.>" });
}

function noteOf(time: Date): string {
  const minute = time.toISOString();
  const at = `${minute.slice(0, 10).replaceAll("-", "")}.${minute.slice(11, 13)}.${minute.slice(14, 16)}`;
  return `sortie.schedules.at.TASKS.${at}.${time.getTime()}.again`;
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
