import { it } from "vitest";
import { fixed } from "../../src/index.ts";
import { appOf, deadLetters, nothing, publishJobs, type Start, stored, unfinished, worker } from "./jobs.ts";

/** Retries that are far off, where few deliveries may be outstanding. */
export function parking(start: Start): void {
  it("far retries are out of the way of healthy messages, and come back unchanged when they are due", async ({
    expect,
  }) => {
    const delayMs = 5_100; // just over what is parked
    const failed = new Map<number, { at: number; message: object }>();
    const back = new Map<number, object>();
    const early: number[] = [];
    let healthy = 0;
    const options = { maxAckPending: 3, retry: { attempts: 2, backoff: fixed(delayMs) } };
    const app = appOf(worker(options), ({ attempt, headers: _, ...message }) => {
      const { n } = message.data;
      const before = failed.get(n);
      if (n > 10) {
        healthy += 1;
      } else if (attempt === 1) {
        failed.set(n, { at: Date.now(), message });
        throw new Error("the other side is down");
      } else {
        back.set(n, message);
        if (!before || Date.now() - before.at < delayMs) early.push(n);
      }
    });
    await using system = await start(app);
    await publishJobs(system, 10);
    await publishJobs(system, 30, 11);

    await expect.poll(async () => (await system.invoke()) && healthy).toBe(30);
    expect(await unfinished(system)).toEqual({
      ...nothing,
      kept: expect.arrayContaining(["SORTIE_ATTEMPTS: 10", "SORTIE_PARKED: 10"]),
    });
    await expect.poll(async () => (await system.invoke()) && unfinished(system), { timeout: 15_000 }).toEqual(nothing);
    expect(early).toEqual([]);
    expect([healthy, back.size]).toEqual([30, 10]);
    // the same message, though it had to be stored anew
    for (const [n, { message }] of failed) expect(back.get(n)).toEqual(message);
    expect(await deadLetters(system)).toEqual([]);
    expect(await stored(system, "JOBS")).toEqual({});
  });
}
