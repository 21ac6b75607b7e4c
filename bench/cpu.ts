import { readdirSync, readFileSync } from "node:fs";

/** The processor time that a process has used, in milliseconds (in steps of ten); NaN where there is no /proc. */
export function cpuMs(pid: number): number {
  try {
    const fields = statOf(pid);
    return (Number(fields[11]) + Number(fields[12])) * 10;
  } catch {
    return Number.NaN;
  }
}

/** The processes of that name which this one started. */
export function childrenNamed(name: string): number[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .filter((pid) => {
      try {
        return Number(statOf(pid)[1]) === process.pid && readFileSync(`/proc/${pid}/comm`, "utf8").trim() === name;
      } catch {
        return false; // it has ended
      }
    });
}

/** What follows the name in /proc/<pid>/stat: state, parent, … */
function statOf(pid: number): string[] {
  return readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /s, "")
    .split(" ");
}
