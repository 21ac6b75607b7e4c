import { promises } from "./promises.ts";

promises("function", "2.10");
