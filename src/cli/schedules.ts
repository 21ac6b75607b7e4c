import { SortieError } from "../errors.ts";
import type { Recurring } from "../schedule/recurring.ts";
import type { ScheduleStatus, Schedules } from "../schedule/schedules.ts";

/** What can be done with one schedule, as `--cancel` and the like. */
const deeds = { cancel: "cancel", fire: "fireNow", pause: "pause", resume: "resume" } as const;

export interface SchedulesOptions {
  readonly stream?: string;
  readonly prefix?: string;
  readonly cancel?: boolean;
  readonly fire?: boolean;
  readonly pause?: boolean;
  readonly resume?: boolean;
}

/** Looks at the schedules of an app, or at one of them, or does something with it. Answers the lines to show. */
export async function lookAfter(
  schedules: Schedules,
  id: string | undefined,
  options: SchedulesOptions,
): Promise<string[]> {
  const { stream, prefix } = options;
  const wanted = (Object.keys(deeds) as (keyof typeof deeds)[]).filter((deed) => options[deed]);
  const [deed, another] = wanted;
  if (another || (deed && id === undefined)) {
    const got = another ? wanted.map((one) => `--${one}`).join(" and ") : `--${deed} without an id`;
    throw new SortieError(
      "invalid-option",
      `Expected an id and one of --${Object.keys(deeds).join(", --")}, got ${got}`,
    );
  }
  if (id === undefined) return listed(schedules, { stream, prefix });
  if (deed) {
    const result = await schedules[deeds[deed]](id, { stream });
    if (result === "unknown") {
      const isThere = deed !== "cancel" && deed !== "fire" && (await schedules.get(id, { stream }));
      throw isThere
        ? new SortieError("invalid-option", `Schedule "${id}" does not come again: cancel it`)
        : unknown(id);
    }
    if (result === "already-fired") throw new SortieError("invalid-option", `Schedule "${id}" has fired`);
    if (result === "cancelled" && deed !== "cancel")
      throw new SortieError("invalid-option", `Schedule "${id}" was cancelled`);
    return [`${result}  ${id}`];
  }
  const status = await schedules.get(id, { stream });
  if (!status) throw unknown(id);
  const { state, at, subject, data, next = [] } = status;
  return [
    `${state}  ${lineOf(status)}`,
    ...(subject ? [`  to ${subject}: ${JSON.stringify(data)}`] : [`  at ${at.toISOString()}`]),
    ...next.map((time) => `  next ${time.toISOString()}`),
    ...(state === "paused" ? ["  next when it is resumed: --resume"] : []),
  ];
}

async function listed(schedules: Schedules, options: { stream: string | undefined; prefix: string | undefined }) {
  const lines: string[] = [];
  for (let after: string | undefined; ; ) {
    const page = await schedules.list({ ...options, after, limit: 500 });
    lines.push(
      ...page.schedules.map((status) => `${status.at.toISOString()}  ${status.state.padEnd(9)}  ${lineOf(status)}`),
    );
    after = page.next;
    if (after === undefined) return lines.length > 0 ? lines : ["nothing waits"];
  }
}

function lineOf({ stream, id, subject, recurring }: ScheduleStatus): string {
  const shown = id.replace(/[^\P{C}\u00ad]/gu, (char) => `\\u{${char.codePointAt(0)?.toString(16)}}`);
  return [`${stream}/${shown}`, ...(subject ? [`→ ${subject}`] : []), ...(recurring ? [timesOf(recurring)] : [])].join(
    "  ",
  );
}

function timesOf(recurring: Recurring): string {
  return recurring.cron === undefined
    ? `every ${recurring.everyMs / 1_000} s`
    : `${recurring.cron} ${recurring.timeZone}`;
}

function unknown(id: string): SortieError {
  return new SortieError("invalid-option", `There is no schedule "${id}"`);
}
