import { AckPolicy } from "@nats-io/jetstream";
import { describe, expect, it } from "vitest";
import { createApp } from "../../src/index.ts";
import { apply } from "../../src/provision/apply.ts";
import {
  appOf,
  dead,
  deadLetters,
  type JobHandler,
  jobs,
  nothing,
  publishJobs,
  type Start,
  stored,
  unfinished,
  worker,
} from "./jobs.ts";

/** Messages that the server gives up on, as the `max_deliver` says of a consumer that someone else has made. */
export function sweeping(start: Start): void {
  const foreign = worker({ managed: false, ackWait: "1s" });

  async function startForeign(handler: JobHandler) {
    const app = appOf(foreign, handler);
    const system = await start(createApp({ streams: [jobs, dead] }));
    await system.jsm.consumers.add("JOBS", {
      durable_name: "worker",
      ack_policy: AckPolicy.Explicit,
      ack_wait: 1e9,
      max_deliver: 2,
      filter_subject: "jobs.do",
    });
    const connection = await system.connect();
    const definitions = { streams: app.streams, consumers: [foreign] };
    const made = (await apply(connection, definitions)).filter(({ action }) => action !== "none");
    expect(made.map(({ name }) => name)).toEqual([
      "SORTIE_ATTEMPTS",
      "SORTIE_PARKED",
      "SORTIE_EXHAUSTED",
      "SORTIE_PARKED/JOBS~worker",
      "SORTIE_EXHAUSTED/JOBS~worker",
    ]);
    const again = await apply(connection, definitions);
    expect(new Set(again.map(({ action }) => action))).toEqual(new Set(["none"]));
    await connection.close();
    return { system, invoke: () => system.invoke({ bindings: app.bindings }) };
  }

  describe("a message that the server gave up on", () => {
    it("is handled all the same where nobody was heard of again that it was given to", async ({ expect }) => {
      const attempts: number[] = [];
      const { system, invoke } = await startForeign(async ({ attempt, data }, { publish }) => {
        attempts.push(attempt);
        await publish("jobs.done", data);
      });
      await using _ = system;
      await publishJobs(system, 1);
      const lost = await system.js.consumers.get("JOBS", "worker");
      for (let time = 1; time <= 2; time++) expect(await lost.next({ expires: 5_000 })).not.toBeNull();
      await expect.poll(async () => (await invoke()) && stored(system, "JOBS")).toEqual({ "jobs.done": 1 });
      await expect.poll(async () => (await invoke()) && unfinished(system)).toEqual(nothing);
      expect(attempts).toEqual([1]);
      expect(await deadLetters(system)).toEqual([]);
    });

    it("is attempted as often as its policy says, and then dead-lettered with its attempts", async ({ expect }) => {
      const attempts: number[] = [];
      const { system, invoke } = await startForeign(({ attempt }) => {
        attempts.push(attempt);
        throw new Error("never");
      });
      await using _ = system;
      const sequence = await system.publish("jobs.do", { n: 1 }, "id-1");
      await expect.poll(async () => (await invoke()) && (await deadLetters(system)).length).toBe(1);
      expect(attempts).toEqual([1, 2, 3]);
      const [letter] = await deadLetters(system);
      expect(letter?.json()).toEqual({ n: 1 });
      const story = Object.fromEntries(letter!.header.keys().map((name) => [name, letter!.header.get(name)]));
      expect(story).toMatchObject({
        "Sortie-Reason": "attempts-exhausted",
        "Sortie-Attempts": "3",
        "Sortie-Subject": "jobs.do",
        "Sortie-Sequence": `${sequence}`,
        "Sortie-Message-Id": "id-1",
      });
      expect(await stored(system, "JOBS")).toEqual({});
      await expect.poll(async () => (await invoke()) && unfinished(system)).toEqual(nothing);
    });
  });
}
