import type { Bench } from "./report.ts";
import { lateness } from "./schedules/lateness.ts";
import { rate } from "./schedules/rate.ts";
import { tick } from "./schedules/tick.ts";

/** How late a message for later is, what it costs that many wait, and how fast they are stored. */
export async function schedules(bench: Bench): Promise<void> {
  bench.report.section("Schedules", "messages for later: how late they are, and what they cost");
  await rate(bench);
  await tick(bench);
  await lateness(bench);
}
