"""Small raw files, written by hand."""

from collections.abc import Sequence
from pathlib import Path

HEADERS = {
    "raw_sample": "user,time_stamp,adgroup_id,pid,nonclk,clk",
    "ad_feature": "adgroup_id,cate_id,campaign_id,customer,brand,price",
    "user_profile": "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
    "occupation,new_user_class_level ",
    "behavior_log": "user,time_stamp,btag,cate,brand",
}
DAY_1 = 1_494_000_000  # 2017-05-06, midnight in Beijing
DAY = 86_400
PID = "430548_1007"
LINES: dict[str, list[str]] = {
    "raw_sample": [
        *(f"1,{DAY_1 + day * DAY + 100},10,{PID},1,0" for day in range(8)),
        *(f"{2**32 + 7},{DAY_1 + day * DAY + 200},11,430539_1007,0,1" for day in range(0, 8, 3)),
        *(f"3,{DAY_1 + 7 * DAY + second},10,{PID},1,0" for second in range(3)),
    ],
    "ad_feature": ["10,5,6,7,8,170.0", f"11,5,{2**40},7,NULL,0.0", "12,1,1,1,1,9.9999999E7"],
    "user_profile": ["1,0,5,2,5,,3,0,3", f"{2**32 + 7},1,2,1,3,2,3,1,", "99,0,0,0,0,0,0,0,0"],
    "behavior_log": [f"1,{DAY_1 + 50},pv,5,8", f"1,{DAY_1 + 60},buy,{2**35},9", f"4,{DAY_1 + 60},buy,5,8"],
}


def write(folder: Path, **changes: Sequence[str]) -> Path:
    """Writes the four files, with the lines of some replaced; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, header in HEADERS.items():
        lines = [header, *changes.get(name, LINES[name])]
        (folder / f"{name}.csv").write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))
    return folder
