import { describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed, type ScheduleOptions } from "../../src/index.ts";
import { prepare } from "../../src/publish/outgoing.ts";
import { release } from "../../src/schedule/release.ts";
import { scheduled } from "../../src/schedule/schedule.ts";
import { type System, startSystem } from "../support/system.ts";

const Report = z.object({ kind: z.string() });
const reports = defineStream("REPORTS", { subjects: { "reports.build": Report }, captures: ["dead.>"] });
const building = defineConsumer(reports, "building", {
  filter: "reports.build",
  deadLetter: "dead.reports",
  retry: { attempts: 3, backoff: fixed("6s") },
  maxAckPending: 100, // so that far retries are parked
});
const hourMs = 3_600_000;

interface Built {
  id: string;
  schedule: { id: string; plannedAt: Date; lateMs: number } | undefined;
}

async function start(handle: () => void = () => {}) {
  const built: Built[] = [];
  const app = createApp({ streams: [reports] }).on(building, ({ id, schedule }) => {
    handle();
    built.push({ id, schedule });
  });
  return { built, system: await startSystem(app) };
}

async function schedule(system: System, options: ScheduleOptions & { id: string }, now: number): Promise<void> {
  const connection = await system.connect();
  const outgoing = await prepare([reports], "reports.build", { kind: "hourly" });
  await scheduled(connection, outgoing, reports, options, now).store(5_000);
  await connection.close();
}

/** None ran since then. */
async function away(system: System, since: number): Promise<void> {
  await system.js.publish("sortie.schedules.done.REPORTS", JSON.stringify({ until: since }));
}

async function tick(system: System, lingerMs = 0) {
  const connection = await system.connect();
  const { streams } = await release(connection, [reports], { deadline: Date.now() + lingerMs + 3_000, lingerMs });
  await connection.close();
  return streams[0];
}

const planned = async ({ jsm }: System) => {
  const { state } = await jsm.streams.info("REPORTS");
  const times: number[] = [];
  for (let seq = Math.max(1, state.first_seq); seq <= state.last_seq; seq++) {
    const message = await jsm.streams.getMessage("REPORTS", { seq });
    if (message) times.push(Number(message.header.get("Sortie-Scheduled-For").split(" ")[0]));
  }
  return times;
};

describe.concurrent("after a day of downtime a schedule that comes again", () => {
  const now = Date.now();
  const dayAgo = now - 24 * hourMs - 1_800_000; // its times lie half an hour away from now
  const all = Array.from({ length: 24 }, (_, n) => dayAgo + (n + 1) * hourMs);

  it.each([
    ["all", all],
    ["latest", all.slice(-1)],
    ["skip", []],
  ] as const)("is caught up with: %s", async (catchUp, times) => {
    const { system } = await start();
    await using _ = system;
    await away(system, dayAgo);
    await schedule(system, { every: "1h", catchUp, id: "hourly" }, dayAgo);
    expect(await tick(system)).toMatchObject({ released: times.length });
    expect(await planned(system)).toEqual(times);
    expect(await tick(system)).toMatchObject({ released: 0 });
    const { state } = await system.jsm.streams.info("SORTIE_SCHEDULES", { subjects_filter: "sortie.schedules.at.>" });
    const next = dayAgo + 25 * hourMs;
    expect(Object.keys(state.subjects ?? {}).map((subject) => Number(subject.split(".").at(-2)))).toEqual([next]);
  });
}, 30_000);

describe.concurrent("what a handler gets", () => {
  it("says which schedule, which planned time, and how late", async ({ expect }) => {
    const { system, built } = await start();
    await using _ = system;
    const made = Date.now() - hourMs - 60_000;
    await away(system, made);
    await schedule(system, { every: "1h", id: "hourly" }, made);
    await tick(system);
    await system.settle();
    const plannedAt = new Date(made + hourMs);
    expect(built).toEqual([
      {
        id: `hourly@${plannedAt.toISOString()}`,
        schedule: { id: "hourly", plannedAt, lateMs: expect.any(Number) },
      },
    ]);
    expect(built[0]?.schedule?.lateMs).toBeGreaterThan(59_000);
    expect(built[0]?.schedule?.lateMs).toBeLessThan(75_000);
  });

  it("says so of one that is spread as well, of which the jitter is no lateness", async ({ expect }) => {
    const { system, built } = await start();
    await using _ = system;
    const made = Date.now();
    await schedule(system, { every: "1s", jitter: "900ms", id: "hourly", until: new Date(made + 3_500) }, made);
    await tick(system, 5_000);
    await system.settle();
    expect(built.map(({ schedule }) => schedule?.plannedAt.getTime())).toEqual([1, 2, 3].map((n) => made + n * 1_000));
    for (const { schedule } of built) expect(schedule?.lateMs).toBeLessThan(500);
  });
});

describe.concurrent("where the one before is not handled yet", () => {
  it("skip leaves the next ones out", async ({ expect }) => {
    const { system, built } = await start();
    await using _ = system;
    const made = Date.now();
    await schedule(system, { every: "1s", overlap: "skip", id: "hourly" }, made);
    await tick(system, 3_300);
    expect(await planned(system)).toEqual([made + 1_000]);
    await system.settle();
    expect(built).toHaveLength(1);
    await tick(system, 1_300);
    const times = await planned(system);
    expect(times.length).toBeGreaterThanOrEqual(2);
    expect(times[1]).toBeGreaterThan(made + 3_000);
  });

  it("queue has the next ones wait, each for the one before, also while that is parked for a retry", async ({
    expect,
  }) => {
    let failing = true;
    const { system, built } = await start(() => {
      if (failing) throw new Error("not yet");
    });
    await using _ = system;
    const made = Date.now();
    await schedule(system, { every: "1s", overlap: "queue", id: "hourly", until: new Date(made + 2_500) }, made);
    await tick(system, 1_500);
    await system.invoke();
    expect((await system.jsm.streams.info("SORTIE_PARKED")).state.messages).toBe(1); // in six seconds again
    await tick(system, 2_500);
    expect(await planned(system)).toEqual([made + 1_000]);
    failing = false;
    await expect
      .poll(async () => (await system.invoke()) && built.length, { interval: 200, timeout: 10_000 })
      .toBeGreaterThan(0);
    await tick(system, 1_500);
    expect(await planned(system)).toEqual([made + 1_000, made + 2_000]);
    await system.settle();
    expect(built).toHaveLength(2);
  });
});
