import { startInWorkerd } from "./hosts.ts";
import { sample } from "./sample.ts";

sample("workerd", (settings) => startInWorkerd(settings));
