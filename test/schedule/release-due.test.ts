import type { MsgHdrs } from "@nats-io/nats-core";
import { describe, it, vi } from "vitest";
import * as z from "zod";
import { SortieError } from "../../src/errors.ts";
import { createApp, defineConsumer, defineStream, fixed, type ScheduleOptions } from "../../src/index.ts";
import type { Outgoing } from "../../src/publish/outgoing.ts";
import { release } from "../../src/schedule/release.ts";
import { scheduled } from "../../src/schedule/schedule.ts";
import { createSchedules } from "../../src/schedule/schedules.ts";
import { altered } from "../support/connections.ts";
import { programOf, type ServerVersion } from "../support/servers.ts";
import { startSystem } from "../support/system.ts";

const Task = z.object({ n: z.number() });
const tasks = defineStream("TASKS", { subjects: { "tasks.new": Task, "tasks.later": Task } });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const planner = defineConsumer(tasks, "planner", {
  filter: "tasks.new",
  deadLetter: "dead.tasks",
  retry: { attempts: 2, backoff: fixed(20) },
});

function taskOf(n: number): Outgoing {
  return { stream: "TASKS", subject: "tasks.later", payload: new TextEncoder().encode(JSON.stringify({ n })) };
}

/** A server with the planner's app, and what the tests do with it. */
async function start(version: ServerVersion, when: (n: number) => ScheduleOptions) {
  const app = createApp({ streams: [tasks, dead] }).on(planner, ({ data }, { schedule }) =>
    schedule("tasks.later", data, when(data.n)),
  );
  const system = await startSystem(app, { binary: programOf(version) });

  /** What was released, in order: which, and when by the server's clock. */
  async function released(): Promise<{ n: number; at: number; id: string }[]> {
    const { state } = await system.jsm.streams.info("TASKS");
    const found = [];
    for (let seq = state.first_seq; seq <= state.last_seq; seq++) {
      const message = await system.jsm.streams.getMessage("TASKS", { seq });
      if (message?.subject !== "tasks.later") continue;
      const id = message.header.get("Sortie-Id");
      found.push({ n: message.json<{ n: number }>().n, at: message.time.getTime(), id });
    }
    return found;
  }

  /** Schedules and notes that wait; not what is remembered of others for a week, nor the notes for forgetting that. */
  async function left(): Promise<string[]> {
    const { state } = await system.jsm.streams.info("SORTIE_SCHEDULES", { subjects_filter: ">" });
    const weekAhead = Date.now() + 6 * 86_400_000;
    const found = [];
    for (const subject of Object.keys(state.subjects ?? {})) {
      if (subject.startsWith("sortie.schedules.done")) continue;
      const message = await system.jsm.streams.getMessage("SORTIE_SCHEDULES", { last_by_subj: subject });
      const isNote = subject.startsWith("sortie.schedules.at");
      if (isNote ? Number(subject.split(".").at(-2)) < weekAhead : !message?.header.get("Sortie-Schedule-State"))
        found.push(subject);
    }
    return found;
  }

  async function releaseFor(ms: number, now = Date.now) {
    const connection = await system.connect();
    try {
      return await release(connection, [tasks], { deadline: now() + ms + 2_000, lingerMs: ms, now });
    } finally {
      await connection.close();
    }
  }

  /** Schedules straight into the stream, as a handler's would be: without the time that handlers take. */
  async function schedule(n: number, at: Date, { id = `task ${n}`, now = Date.now() } = {}): Promise<void> {
    const connection = await system.connect();
    await scheduled(connection, taskOf(n), tasks, { id, at }, now).store(5_000);
    await connection.close();
  }

  return {
    system,
    released,
    left,
    releaseFor,
    schedule,
    [Symbol.asyncDispose]: () => system[Symbol.asyncDispose](),
  };
}

const numbers = (count: number) => Array.from({ length: count }, (_, n) => n);

describe.concurrent("on nats-server 2.9 a function", () => {
  it("releases each at its time, once, however many there are, and leaves nothing behind", async ({ expect }) => {
    const from = Date.now() + 1_500;
    await using started = await start("2.9", (n) => ({ at: new Date(from + 10 * n), id: `task ${n}` }));
    const { system, released, left, releaseFor } = started;
    for (const n of numbers(100)) await system.publish("tasks.new", { n });
    await system.invoke();
    expect(await left()).toHaveLength(200);
    await Promise.all(Array.from({ length: 3 }, () => releaseFor(3_500)));
    const found = await released();
    expect(found.map(({ n }) => n).toSorted((a, b) => a - b)).toEqual(numbers(100));
    expect(found.map(({ id }) => id).toSorted()).toEqual(
      numbers(100)
        .map((n) => `task ${n}`)
        .toSorted(),
    );
    expect(Math.min(...found.map(({ n, at }) => at - (from + 10 * n)))).toBeGreaterThanOrEqual(0);
    expect(await left()).toEqual([]);
  });

  it("that waits for one of the seconds to come is there in time, whatever else happens or does not", async ({
    expect,
  }) => {
    await using started = await start("2.9", () => ({ in: "1h" }));
    const { released, releaseFor, schedule } = started;
    const due = Date.now() + 6_500;
    await schedule(1, new Date(due));
    await releaseFor(due + 2_500 - Date.now());
    const [message] = await released();
    expect(message?.at).toBeGreaterThanOrEqual(due);
    expect(message?.at).toBeLessThan(due + 1_000);
  }, 15_000);

  it("releases what was due while none ran for a day, in the order of their times", async ({ expect }) => {
    await using started = await start("2.9", () => ({ in: "1h" }));
    const { system, released, left, releaseFor, schedule } = started;
    const now = Date.now();
    const dayAgo = now - 86_400_000;
    await system.js.publish("sortie.schedules.done.TASKS", JSON.stringify({ until: dayAgo }));
    const times = numbers(300).map((n) => dayAgo + 60_000 + ((n * 7) % 300) * 280_000);
    await Promise.all(times.map((at, n) => schedule(n, new Date(at), { now: at })));
    await schedule(999, new Date(now + 3 * 86_400_000));
    expect(await releaseFor(0)).toMatchObject({ streams: [{ stream: "TASKS", released: 300 }] });
    const order = (await released()).map(({ n }) => times[n] ?? 0);
    expect(order).toEqual(times.toSorted((a, b) => a - b));
    expect(await left()).toHaveLength(2);
    expect(await releaseFor(0)).toMatchObject({ streams: [{ stream: "TASKS", released: 0 }] });
  });
});

describe.concurrent("a schedule", () => {
  it("is not missed where others take away what was on the page before", async ({ expect }) => {
    await using started = await start("2.10", () => ({ in: "1h" }));
    const { system } = started;
    const connection = await system.connect();
    const at = new Date(Date.now() - 1_000);
    for (const n of numbers(12)) {
      await scheduled(connection, taskOf(n), tasks, { id: `x${n}`, nameless: true, at }, Date.now()).store(5_000);
    }
    const page = 5;
    let pages = 0;
    const paged = altered(connection, {
      async request(subject, payload, options) {
        const isInfo = subject.startsWith("$JS.API.STREAM.INFO") && payload;
        const { subjects_filter = "", offset = 0 } = isInfo ? JSON.parse(`${payload}`) : {};
        if (!subjects_filter.includes(".soon.")) return connection.request(subject, payload, options);
        const answer = await connection.request(subject, JSON.stringify({ subjects_filter }), options);
        const info = answer.json<{ state: { subjects: Record<string, number> } }>();
        const all = Object.entries(info.state.subjects ?? {}).toSorted(([a], [b]) => (a < b ? -1 : 1));
        info.state.subjects = Object.fromEntries(all.slice(offset, offset + page));
        if (pages++ === 0) {
          const gone = all.slice(0, 3).map(([one]) => one);
          for (const subject of gone) {
            const { seq } = (await system.jsm.streams.getMessage("SORTIE_SCHEDULES", { last_by_subj: subject })) ?? {};
            await system.jsm.streams.deleteMessage("SORTIE_SCHEDULES", seq ?? 0);
          }
        }
        return Object.assign(Object.create(answer), { json: () => info });
      },
    });
    const report = await release(paged, [tasks], { deadline: Date.now() + 3_000 });
    expect(report).toEqual({ streams: [{ stream: "TASKS", released: 9, latestMs: expect.any(Number) }] });
    expect(await started.left()).toEqual([]);
    await connection.close();
  }, 15_000);

  it("that a handler made long before it was sent is found at once, and so is one of a host that is behind", async ({
    expect,
  }) => {
    await using started = await start("newest", () => ({ in: "1h" }));
    const { system, released } = started;
    await started.releaseFor(0); // that all until now is released is remembered
    const connection = await system.connect();
    const stream = { ...tasks, schedules: "function" } as const;
    const make = (n: number, ms: number, now: number) => {
      return scheduled(connection, taskOf(n), stream, { id: `x${n}`, in: ms }, now);
    };
    vi.useFakeTimers({ toFake: ["performance"], now: Date.now() });
    const slow = make(1, 61_000, Date.now() - 240_000);
    vi.advanceTimersByTime(240_000);
    await slow.store(5_000);
    vi.useRealTimers();
    const running = release(connection, [stream], { deadline: Date.now() + 3_500, lingerMs: 2_000 });
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    const another = await system.connect();
    const behind = Date.now() - 3 * 86_400_000;
    await scheduled(another, taskOf(2), stream, { id: "x2", in: 3_600_000 }, behind).store(5_000);
    await running;
    expect((await released()).map(({ n }) => n)).toEqual([1, 2]);
    await another.close();
    await connection.close();
  }, 15_000);

  it("of one stream is released where another stream is missing, which the report says", async ({ expect }) => {
    await using started = await start("2.10", () => ({ in: "1h" }));
    const missing = defineStream("MISSING", { subjects: { missing: Task } });
    await started.schedule(1, new Date(Date.now() - 1_000));
    const connection = await started.system.connect();
    expect(await release(connection, [missing, tasks], { deadline: Date.now() + 3_000 })).toMatchObject({
      streams: [
        { stream: "MISSING", error: expect.stringMatching(/stream not found.*npx sortie apply/) },
        { released: 1 },
      ],
    });
    await connection.close();
  });

  it("is released once where the stream of schedules was made by an older server, and where nothing may be removed", async ({
    expect,
  }) => {
    await using started = await start("newest", () => ({ in: "1h" }));
    const { system } = started;
    const { config } = await system.jsm.streams.info("SORTIE_SCHEDULES");
    await system.jsm.streams.delete("SORTIE_SCHEDULES");
    await system.jsm.streams.add({ ...config, allow_msg_ttl: false });
    const stream = { ...tasks, schedules: "function" } as const;
    const connection = await system.connect();
    const schedules = createSchedules(connection, [stream]);
    await schedules.schedule("tasks.later", { n: 1 }, { in: 1, id: "named" });
    await schedules.schedule("tasks.later", { n: 2 }, { in: "1h", id: "cancelled" });
    expect(await schedules.cancel("cancelled")).toBe("cancelled");
    await scheduled(connection, taskOf(3), stream, { id: "x", nameless: true, in: 1 }, Date.now()).store(5_000);
    const keeping = altered(connection, {
      request: (subject, ...rest) =>
        subject.startsWith("$JS.API.STREAM.MSG.DELETE")
          ? Promise.reject(new SortieError("permission-denied", `may not ${subject}`))
          : connection.request(subject, ...rest),
    });
    const run = (lingerMs: number) => release(keeping, [stream], { deadline: Date.now() + lingerMs + 2_000, lingerMs });
    expect(await run(7_000)).toMatchObject({ streams: [{ released: 2, error: expect.stringContaining("may not") }] });
    expect(await run(0)).toEqual({ streams: [{ stream: "TASKS", released: 0 }] });
    expect((await started.released()).map(({ n }) => n).toSorted()).toEqual([1, 3]);
    expect(await schedules.get("named")).toMatchObject({ state: "released" });
    expect(await schedules.get("cancelled")).toMatchObject({ state: "cancelled" });
    await connection.close();
  }, 20_000);

  it("on its way into the stream when a function begins is not missed: it looks when that is stored", async ({
    expect,
  }) => {
    await using started = await start("newest", () => ({ in: "1h" }));
    const connection = await started.system.connect();
    const steps: string[] = [];
    const watched = altered(connection, {
      subscribe(subject, options) {
        if (subject.startsWith("sortie.schedules.at")) steps.push("listens");
        return connection.subscribe(subject, options);
      },
      async request(subject, payload, options) {
        const isListing = subject.includes("STREAM.INFO") && `${payload}`.includes("sortie.schedules.at");
        if (isListing) steps.push("looks");
        const answer = await connection.request(subject, payload, options);
        if (subject.startsWith("sortie.schedules.done")) steps.push("has stored");
        return answer;
      },
    });
    await release(watched, [{ ...tasks, schedules: "function" }], { deadline: Date.now() + 2_000 });
    const kinds = steps.filter((step, n) => step !== steps[n - 1]);
    expect(kinds.slice(0, 3)).toEqual(["listens", "has stored", "looks"]);
    await connection.close();
  }, 15_000);

  const soon = (ms: number) => new Date(Date.now() + ms);

  it("of the past is released at once, by one that runs as by one that comes", async ({ expect }) => {
    await using started = await start("2.10", () => ({ in: "1h" }));
    const { released, left, releaseFor, schedule } = started;
    await schedule(1, new Date(0));
    await releaseFor(0);
    expect((await released()).map(({ n }) => n)).toEqual([1]);
    const running = releaseFor(2_000);
    await new Promise((resolve) => setTimeout(resolve, 500));
    await schedule(2, new Date(0));
    await expect.poll(async () => (await released()).map(({ n }) => n)).toEqual([1, 2]);
    await running;
    expect(await left()).toEqual([]);
  });

  it("that is replaced by a later one is released then, and by an earlier one is released then", async ({ expect }) => {
    await using started = await start("2.10", () => ({ in: "1h" }));
    const { released, left, releaseFor, schedule } = started;
    const later = soon(3_500);
    await schedule(1, soon(2_000), { id: "put off" });
    await schedule(2, later, { id: "put off" });
    await schedule(3, soon(3_600_000), { id: "put forward" });
    const sooner = soon(1_200);
    await schedule(4, sooner, { id: "put forward" });
    await releaseFor(4_500);
    const found = await released();
    expect(found.map(({ n }) => n)).toEqual([4, 2]);
    expect(found[0]?.at).toBeGreaterThanOrEqual(sooner.getTime());
    expect(found[1]?.at).toBeGreaterThanOrEqual(later.getTime());
    expect(await left()).toHaveLength(1); // the note of what is released already
  });

  it("is released by the server's clock, however wrong a function's is", async ({ expect }) => {
    await using started = await start("2.10", () => ({ in: "1h" }));
    const { released, releaseFor, schedule } = started;
    const due = soon(2_500);
    await schedule(1, due);
    const ahead = releaseFor(3_000, () => Date.now() + 60_000);
    const behind = releaseFor(3_000, () => Date.now() - 600_000);
    await Promise.all([ahead, behind]);
    const found = await released();
    expect(found).toHaveLength(1);
    expect((found[0]?.at ?? 0) - due.getTime()).toBeGreaterThanOrEqual(0);
  });

  it("whose function died with it is released by another, once", async ({ expect }) => {
    await using started = await start("2.10", () => ({ in: "1h" }));
    const { system, released, left, releaseFor, schedule } = started;
    for (const n of numbers(20)) await schedule(n, soon(800));
    for (const lost of ["claimed", "released"]) {
      const connection = await system.connect();
      let counted = 0;
      const dying = altered(connection, {
        request: (subject, ...rest) => {
          const state = (rest[1] as { headers?: MsgHdrs } | undefined)?.headers?.get("Sortie-Schedule-State");
          const isLast = lost === "claimed" ? subject === "tasks.later" : state === "released";
          if (isLast && ++counted > 5) return new Promise(() => {}); // and is never heard of again
          return connection.request(subject, ...rest);
        },
      });
      await release(dying, [tasks], { deadline: Date.now() + 2_500, lingerMs: 1_500 });
      await connection.close();
    }
    await releaseFor(6_000);
    expect((await released()).map(({ n }) => n).toSorted((a, b) => a - b)).toEqual(numbers(20));
    await releaseFor(0);
    expect(await left()).toEqual([]);
  }, 30_000);
});

describe.concurrent("on nats-server 2.10 a function", () => {
  it("is not late for what it has heard late of the server's clock, once it hears in time", async ({ expect }) => {
    await using started = await start("2.10", () => ({ in: "1h" }));
    const { system, released, schedule } = started;
    const began = Date.now();
    const due = began + 4_000;
    await schedule(1, new Date(due));
    const connection = await system.connect();
    const crowded = altered(connection, {
      async request(...what) {
        const isCrowded = Date.now() < began + 2_200;
        const answer = await connection.request(...what);
        if (isCrowded) await new Promise((resolve) => setTimeout(resolve, 700));
        return answer;
      },
    });
    await release(crowded, [tasks], { deadline: due + 3_000, lingerMs: due + 1_500 - Date.now() });
    await connection.close();
    const [message] = await released();
    expect(message?.at).toBeGreaterThanOrEqual(due);
    expect(message?.at).toBeLessThan(due + 500);
  });
});
