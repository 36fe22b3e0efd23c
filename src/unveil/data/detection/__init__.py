"""Images with boxes and instance masks: the layouts of COCO, YOLO and Pascal VOC, read into one form."""
