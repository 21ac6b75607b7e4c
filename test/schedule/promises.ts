import { describe, it } from "vitest";
import * as z from "zod";
import { createApp, defineStream, type ScheduleOptions } from "../../src/index.ts";
import { type Connection, disconnect } from "../../src/nats/connection.ts";
import { release } from "../../src/schedule/release.ts";
import { createSchedules, type Schedules } from "../../src/schedule/schedules.ts";
import { programOf, type ServerVersion } from "../support/servers.ts";
import { type System, startSystem } from "../support/system.ts";

/** What is promised of schedules, whoever releases them. */
export function promises(engine: "server" | "function", version: ServerVersion): void {
  const Task = z.object({ n: z.number() });
  const tasks = defineStream("TASKS", {
    subjects: { "tasks.later": Task, "tasks.other": Task },
    schedules: engine === "server" ? true : "function",
  });
  const app = createApp({ streams: [tasks] });

  /** A server with functions that release, and whoever looks after the schedules. */
  async function start(functions = 1, hostAheadMs = 0) {
    const system = await startSystem(app, { binary: programOf(version) });
    const open: Connection[] = [];
    const now = () => Date.now() + hostAheadMs;
    let over = false;

    /** Over a connection of their own. */
    async function connect(): Promise<Schedules> {
      const connection = await system.connect();
      open.push(connection);
      return createSchedules(connection, app.streams, { now });
    }

    /** Invocations one after the other, as ticks have them; where the server releases they look whether they have to. */
    async function keepReleasing(): Promise<void> {
      while (!over) {
        try {
          const own = await system.connect();
          await release(own, app.streams, { deadline: now() + 2_500, lingerMs: 1_500, now });
          disconnect(own);
        } catch {} // the server may be away
        await sleep(20);
      }
    }

    const loops = Array.from({ length: functions }, keepReleasing);
    const schedules = await connect();
    return {
      system,
      schedules,
      connect,
      later: (n: number, options: ScheduleOptions) => schedules.schedule("tasks.later", { n }, options),
      released: () => releasedIn(system),
      async [Symbol.asyncDispose]() {
        over = true;
        await Promise.all(loops);
        for (const one of open) disconnect(one);
        await system[Symbol.asyncDispose]();
      },
    };
  }

  interface Found {
    n: number;
    /** By the server's clock. */
    at: number;
    id: string;
    schedule: string | undefined;
    planned: number;
  }

  /** What was released, in its order. */
  async function releasedIn({ jsm }: System): Promise<Found[]> {
    const { state } = await jsm.streams.info("TASKS");
    const found: Found[] = [];
    for (let seq = state.first_seq; seq <= state.last_seq; seq++) {
      const message = await jsm.streams.getMessage("TASKS", { seq });
      if (!message?.subject.startsWith("tasks.")) continue;
      found.push({
        n: message.json<{ n: number }>().n,
        at: message.time.getTime(),
        id: message.header.get("Sortie-Id"),
        schedule: message.header.get("Sortie-Schedule") || undefined,
        planned: Number(message.header.get("Sortie-Scheduled-For").split(" ")[0]),
      });
    }
    return found;
  }

  const soon = (ms: number) => new Date(Date.now() + ms);
  const numbers = (count: number) => Array.from({ length: count }, (_, n) => n);
  const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

  describe.concurrent(`on nats-server ${version}, released by ${engine === "server" ? "the server" : "a function"}, a schedule`, () => {
    it("is released once, not before its time, with its id and when it was planned", async ({ expect }) => {
      await using started = await start(2);
      const { later, released } = started;
      const times = numbers(60).map((n) => Date.now() + 600 + ((n * 7) % 60) * 15);
      await Promise.all(times.map((at, n) => later(n, { at: new Date(at), id: `task ${n}` })));
      await expect.poll(async () => (await released()).length).toBe(60);
      await sleep(300);
      const found = await released();
      expect(found.map(({ n }) => n).toSorted((a, b) => a - b)).toEqual(numbers(60));
      for (const { n, at, id, planned } of found) {
        expect({ id, planned }).toEqual({ id: `task ${n}`, planned: times[n] });
        expect(at).toBeGreaterThanOrEqual(times[n] as number);
      }
    });

    it("is what it was scheduled to be last, and none of the others, however often", async ({ expect }) => {
      await using started = await start();
      const { schedules, later, released } = started;
      await later(1, { in: "1h", id: "sooner" });
      await later(2, { in: "1500ms", id: "sooner" });
      await later(3, { in: "2600ms", id: "later" });
      await later(4, { in: "1h", id: "later" });
      await schedules.schedule("tasks.other", { n: 5 }, { in: "1500ms", id: "elsewhere" });
      await expect.poll(async () => (await released()).map(({ n }) => n).toSorted()).toEqual([2, 5]);
      await sleep(1_700);
      expect((await released()).map(({ n }) => n).toSorted()).toEqual([2, 5]);
      expect(await schedules.get("later")).toMatchObject({ state: "waiting", data: { n: 4 }, subject: "tasks.later" });
    });

    it("is not lost where it replaces one that is being released", async ({ expect }) => {
      await using started = await start();
      const { later, released } = started;
      for (const n of numbers(8)) {
        await later(n, { in: n % 2 ? "40ms" : "1200ms", id: "debounced" });
        await sleep((n * 37) % 90);
      }
      await later(99, { in: "300ms", id: "debounced" });
      await expect.poll(async () => (await released()).map(({ n }) => n)).toContain(99);
      await sleep(300);
      const found = (await released()).map(({ n }) => n);
      expect(found.at(-1)).toBe(99);
      expect(new Set(found).size).toBe(found.length);
    });

    it("is cancelled, or was released, or is not known", async ({ expect }) => {
      await using started = await start();
      const { schedules, later, released } = started;
      expect(await schedules.cancel("never made")).toBe("unknown");
      expect(await schedules.get("never made")).toBeUndefined();
      const { at } = await later(1, { in: "1h", id: "a.b/ü *" });
      expect(await schedules.get("a.b/ü *")).toEqual({
        id: "a.b/ü *",
        stream: "TASKS",
        subject: "tasks.later",
        state: "waiting",
        at,
        data: { n: 1 },
      });
      expect(await schedules.cancel("a.b/ü *")).toBe("cancelled");
      expect(await schedules.cancel("a.b/ü *")).toBe("cancelled");
      expect(await schedules.get("a.b/ü *")).toMatchObject({ state: "cancelled", at });
      await later(2, { in: "100ms", id: "soon" });
      await expect.poll(async () => (await released()).length).toBe(1);
      await expect.poll(() => schedules.get("soon")).toMatchObject({ state: "released" });
      expect(await schedules.cancel("soon")).toBe("already-fired");
      await later(3, { in: "1h", id: "soon" });
      expect(await schedules.cancel("soon")).toBe("cancelled");
      await sleep(500);
      expect((await released()).map(({ n }) => n)).toEqual([2]);
    });

    it("is told truly whether it was cancelled, 1,000 times at the moment when it is released", {
      timeout: 60_000,
    }, async ({ expect }) => {
      await using started = await start(2);
      const { schedules, later, released } = started;
      const from = Date.now() + 4_000;
      const due = (n: number) => from + n * 4;
      await Promise.all(numbers(1_000).map((n) => later(n, { at: new Date(due(n)), id: `race ${n}` })));
      // the server takes no change within the last second: that is where it is decided
      const decided = engine === "server" ? 1_000 : 300;
      const told = await Promise.all(
        numbers(1_000).map(async (n) => {
          await sleep(due(n) - Date.now() - decided - 300 + Math.random() * 600);
          return schedules.cancel(`race ${n}`);
        }),
      );
      await sleep(due(1_000) - Date.now() + 2_000);
      const found = (await released()).map(({ n }) => n);
      const fired = numbers(1_000).filter((n) => told[n] === "already-fired");
      expect(found.toSorted((a, b) => a - b)).toEqual(fired);
      expect(told.filter((one) => one === "cancelled")).toHaveLength(1_000 - fired.length);
      expect(Math.min(fired.length, 1_000 - fired.length)).toBeGreaterThan(50);
    });

    it.for([
      ["an hour ahead", 3_600_000],
      ["an hour behind", -3_600_000],
    ] as const)(
      "is released at its time, and cancelled in time, by hosts whose clocks are %s",
      async ([, ahead], { expect }) => {
        await using started = await start(2, ahead);
        const { later, released, schedules } = started;
        const due = soon(1_700);
        await later(1, { at: due, id: "1" });
        await later(2, { at: soon(3_000), id: "2" });
        expect(await schedules.cancel("2")).toBe("cancelled");
        await expect.poll(async () => (await released()).map(({ n }) => n)).toEqual([1]);
        expect((await released())[0]?.at).toBeGreaterThanOrEqual(due.getTime());
        expect((await released())[0]?.at).toBeLessThan(due.getTime() + 1_000);
        await expect.poll(() => schedules.get("1")).toMatchObject({ state: "released" });
        expect(await schedules.cancel("1")).toBe("already-fired");
        expect(await schedules.cancel("2")).toBe("cancelled");
      },
    );

    it("is fired at once", async ({ expect }) => {
      await using started = await start();
      const { schedules, later, released } = started;
      await later(1, { in: "1h", id: "now" });
      expect(await schedules.fireNow("now")).toBe("fired");
      await expect.poll(async () => (await released()).map(({ n }) => n), { timeout: 2_000 }).toEqual([1]);
      await expect.poll(() => schedules.fireNow("now")).toBe("already-fired");
      expect(await schedules.fireNow("never made")).toBe("unknown");
      expect(await schedules.cancel("now")).toBe("already-fired");
    });

    it("is listed by its id and its time, a page at a time", async ({ expect }) => {
      await using started = await start();
      const { schedules, later } = started;
      for (const n of numbers(7)) await later(n, { at: soon(3_600_000 * (n + 1)), id: `list/${n}` });
      await later(50, { in: "1h", id: "another" });
      await schedules.cancel("list/3");
      const first = await schedules.list({ prefix: "list/", limit: 4 });
      expect(first.schedules.map(({ id }) => id)).toEqual(["list/0", "list/1", "list/2", "list/4"]);
      const second = await schedules.list({ prefix: "list/", limit: 4, after: first.next });
      expect(second).toMatchObject({ schedules: [{ id: "list/5" }, { id: "list/6", data: { n: 6 } }] });
      expect(second.next).toBeUndefined();
      const between = await schedules.list({ from: soon(2_000_000), to: soon(2 * 3_600_000 + 1_000) });
      expect(between.schedules.map(({ id }) => id)).toEqual(["another", "list/0", "list/1"]);
    });

    it("waits while the server is away, and is released when it is back", async ({ expect }) => {
      await using started = await start();
      const { system, connect, later } = started;
      await later(1, { in: "1500ms", id: "1" });
      await later(2, { in: "1h", id: "2" });
      await system.server.kill("SIGKILL");
      await sleep(1_600);
      await system.server.start();
      const back = await connect();
      await expect.poll(() => back.get("1")).toMatchObject({ state: "released" });
      expect(await back.cancel("2")).toBe("cancelled");
      expect(await back.cancel("1")).toBe("already-fired");
    });

    if (engine === "function") {
      it("that was due while nothing released for a day comes in the order of their times", async ({ expect }) => {
        await using system = await startSystem(app, { binary: programOf(version) });
        const dayAgo = Date.now() - 86_400_000;
        const connection = await system.connect();
        await system.js.publish("sortie.schedules.done.TASKS", JSON.stringify({ until: dayAgo }));
        const then = createSchedules(connection, app.streams, { now: () => dayAgo });
        const minutes = numbers(60).map((n) => ((n * 7) % 60) * 20 + 2);
        await Promise.all(
          minutes.map((minute, n) =>
            then.schedule("tasks.later", { n }, { at: new Date(dayAgo + minute * 60_000), id: `${n}` }),
          ),
        );
        await release(connection, app.streams, { deadline: Date.now() + 5_000 });
        const found = (await releasedIn(system)).map(({ n }) => minutes[n] ?? -1);
        expect(found).toHaveLength(60);
        expect(found).toEqual(minutes.toSorted((a, b) => a - b));
        disconnect(connection);
      });
    }

    it("comes again every second, until it ends", async ({ expect }) => {
      await using started = await start(2);
      const { schedules, later, released } = started;
      const until = new Date(Date.now() + 4_500);
      const { at } = await later(1, { every: "1s", until, id: "often" });
      const first = at.getTime();
      expect(await schedules.get("often")).toMatchObject({
        state: "waiting",
        recurring: { everyMs: 1_000, catchUp: "latest", overlap: "allow" },
        next: [0, 1, 2, 3].map((n) => new Date(first + n * 1_000)),
      });
      await expect.poll(() => schedules.get("often")).toMatchObject({ state: "released" });
      const found = await released();
      expect(found.map(({ planned }) => planned)).toEqual([0, 1, 2, 3].map((n) => first + n * 1_000));
      expect(found.map(({ id }) => id)).toEqual(found.map(({ planned }) => `often@${new Date(planned).toISOString()}`));
      for (const { at, planned, schedule } of found) {
        expect(schedule).toBe("often");
        expect(at).toBeGreaterThanOrEqual(planned);
      }
      expect(await schedules.cancel("often")).toBe("already-fired");
    });

    it("that comes again is paused, resumed, fired once more, and cancelled", async ({ expect }) => {
      await using started = await start();
      const { schedules, later, released } = started;
      await later(1, { every: "1s", id: "often" });
      await expect.poll(async () => (await released()).length).toBeGreaterThan(0);
      expect(await schedules.pause("often")).toBe("paused");
      const before = (await released()).length;
      await sleep(1_500);
      expect(await released()).toHaveLength(before);
      expect(await schedules.get("often")).toMatchObject({ state: "paused" });
      expect((await schedules.list()).schedules).toMatchObject([{ id: "often", state: "paused" }]);
      expect(await schedules.fireNow("often")).toBe("fired");
      expect(await released()).toHaveLength(before + 1);
      const resumed = Date.now();
      expect(await schedules.resume("often")).toBe("resumed");
      await expect.poll(async () => (await released()).length).toBeGreaterThan(before + 1);
      expect((await released()).at(-1)?.planned).toBeGreaterThan(resumed); // what passed by while it was paused does not come
      expect(await schedules.cancel("often")).toBe("cancelled");
      const after = (await released()).length;
      await sleep(1_300);
      expect(await released()).toHaveLength(after);
      expect(await schedules.resume("often")).toBe("unknown");
    });
  });
}
