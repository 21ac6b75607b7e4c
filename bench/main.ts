// What `npm run bench` shows: Sortie beside the bare client and beside other queues, all of it measured in this run.
import { parseArgs } from "node:util";
import { bundle } from "./bundle.ts";
import { fanOut } from "./fan-out.ts";
import { hub } from "./hub.ts";
import { limits } from "./limits.ts";
import { linger } from "./linger.ts";
import { memory } from "./memory.ts";
import { queues } from "./queues.ts";
import { type Bench, createReport } from "./report.ts";
import { roundTrips } from "./round-trips.ts";
import { schedules } from "./schedules.ts";
import { throughput } from "./throughput.ts";
import { workerd } from "./workerd.ts";

const sections: Record<string, (bench: Bench) => Promise<void>> = {
  throughput,
  "round-trips": roundTrips,
  linger,
  workerd,
  bundle,
  hub,
  memory,
  limits,
  queues,
  schedules,
  "fan-out": fanOut,
};
const names = Object.keys(sections);
const usage = `npm run bench -- [--quick] [--only <${names.join(" | ")}>]…`;

const { only, quick } = options();
const report = createReport(process.stdout, process.stderr);
for (const name of only) {
  try {
    await sections[name]?.({ quick, report });
  } catch (error) {
    console.error(`\nThis section failed: ${error instanceof Error ? error.stack : error}`);
    report.target(`All of the section "${name}"`, "not measured, it failed", false);
    process.exitCode = 1;
  }
}
report.summary();
process.exit(); // whatever a failed section has left open; its servers go with us

function options(): { only: readonly string[]; quick: boolean } {
  try {
    const options = { only: { type: "string", multiple: true }, quick: { type: "boolean", default: false } } as const;
    const { only = names, quick } = parseArgs({ options }).values;
    const unknown = only.find((name) => !names.includes(name));
    if (unknown !== undefined) throw new Error(`There is no section "${unknown}".`);
    return { only, quick };
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : error}\n${usage}`);
    process.exit(1);
  }
}
