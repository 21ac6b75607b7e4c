import { describe, it } from "vitest";
import { createApp, NonRetriableError } from "../../src/index.ts";
import { dead, deadLetters, jobs, nothing, publishJobs, type Start, stored, unfinished, worker } from "./jobs.ts";

/** What becomes of messages that are handled together. */
export function batching(start: Start): void {
  describe("a batch", () => {
    it("is settled message by message, and halved to find the one that breaks it", async ({ expect }) => {
      const attempts = new Map<number, number[]>();
      const app = createApp({ streams: [jobs, dead] }).handleBatch(
        worker({ concurrency: 2 }),
        async (messages, { of }) => {
          for (const { data, attempt } of messages) attempts.set(data.n, [...(attempts.get(data.n) ?? []), attempt]);
          for (const message of messages) void of(message).publish("jobs.done", message.data);
          if (messages.some(({ data }) => data.n === 7)) throw new NonRetriableError("seven");
          const failing = messages.filter(({ data, attempt }) => data.n % 5 === 0 && attempt < 3);
          return { failed: failing.map(({ sequence }) => ({ sequence, error: "not yet" })) };
        },
      );
      await using system = await start(app);
      await publishJobs(system, 40);
      await system.settle();
      const letters = (await deadLetters(system)).map((letter) => ({
        ...letter.json<object>(),
        reason: letter.header.get("Sortie-Reason"),
        attempts: letter.header.get("Sortie-Attempts"),
      }));
      expect(letters).toEqual([{ n: 7, reason: "non-retriable", attempts: "1" }]);
      expect(await stored(system, "JOBS")).toEqual({ "jobs.done": 39 });
      expect(await unfinished(system)).toEqual(nothing);
      for (const [n, seen] of attempts) expect(new Set(seen)).toEqual(new Set(n % 5 === 0 ? [1, 2, 3] : [1]));
    });
  });
}
